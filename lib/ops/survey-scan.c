/* SPDX-License-Identifier: MIT */
#include "ops/survey.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/error.h"
#include "base/math.h"
#include "base/utf16.h"
#include "disk/info.h"
#include "disk/open-beneath.h"
#include "format/identifier.h"
#include "format/metadata.h"
#include "format/parent-locator.h"
#include "image/image.h"
#include "ops/new-file.h"

#define MAX_LOCATOR_BYTES_TOGETHER MIB(256)

/* ---- the list ---- */

static size_t *bucket_of(struct vhdx_survey *s, const struct storage_identity *id)
{
    size_t at = (id->inode * UINT64_C(0x9e3779b97f4a7c15) ^ id->device) % s->nr_buckets;

    for (;; at = (at + 1) % s->nr_buckets) {
        const struct survey_image *there = s->buckets[at] ? &s->images[s->buckets[at] - 1] : NULL;
        if (!there || is_same_file(&there->identity, id))
            return &s->buckets[at];
    }
}

static int grow(struct vhdx_survey *s)
{
    size_t capacity = s->capacity ? 2 * s->capacity : 64;
    struct survey_image *images = reallocarray(s->images, capacity, sizeof *images);
    size_t *buckets = calloc(2 * capacity, sizeof *buckets);

    if (images)
        s->images = images;
    if (!images || !buckets) {
        free(buckets);
        return fail_memory("a list of images");
    }
    free(s->buckets);
    s->capacity = capacity;
    s->buckets = buckets;
    s->nr_buckets = 2 * capacity;
    for (size_t i = 0; i < s->nr_images; i++)
        *bucket_of(s, &s->images[i].identity) = i + 1;
    return 0;
}

/* From too many files: whoever asked about an image did not name the folder. */
static const char *way_out(const struct vhdx_survey *s)
{
    return s->of_image ? "move the image and its relatives to a folder without the others" : "name a folder further down";
}

/* Take over *image; its identity is new. */
static int append(struct vhdx_survey *s, struct survey_image *image, size_t *index)
{
    int r = 0;

    if (s->nr_images == SURVEY_MAX_IMAGES)
        r = fail(VHDX_E_LIMIT, "there are more than %d images; %s", SURVEY_MAX_IMAGES, way_out(s));
    else if (s->nr_images == s->capacity)
        r = grow(s);
    if (r < 0) {
        survey_image_free(image);
        return r;
    }
    *index = s->nr_images;
    *bucket_of(s, &image->identity) = s->nr_images + 1;
    s->images[s->nr_images++] = *image;
    return 0;
}

/* ---- one file ---- */

static bool is_called_image(const char *path)
{
    const char *dot = strrchr(path, '.');
    return dot && (strcasecmp(dot, ".vhdx") == 0 || strcasecmp(dot, ".avhdx") == 0);
}

bool survey_begins_like_image(struct storage *file)
{
    uint8_t first[8];
    size_t got;

    return storage_pread_zero_fill(file, first, sizeof first, IDENTIFIER_OFFSET, &got) == 0 &&
           identifier_signature_valid(first);
}

static int keep_recorded_paths(struct survey_image *image)
{
    static const char *const keys[NR_RECORDED_PATHS] = {"relative_path", "volume_path", "absolute_win32_path"};
    char text[PATH_MAX];

    for (unsigned k = 0; k < NR_RECORDED_PATHS; k++) {
        struct locator_pair pair;
        if (!locator_find(image->locator, keys[k], &pair))
            continue;
        if (locator_text(image->locator, pair.value_offset, pair.value_length, text, sizeof text) < 0)
            strcpy(text, "(longer than any path)");
        image->recorded[k] = strdup(text);
        if (!image->recorded[k])
            return fail_memory("a path");
    }
    return 0;
}

static int keep_facts(struct vhdx_survey *s, struct survey_image *image, struct image *img)
{
    image_fill_info(img, &image->info);
    image->info.virtual_size = img->geometry.virtual_size;
    if (!img->locator)
        return 0;
    s->locator_bytes += img->locator_length;
    if (s->locator_bytes > MAX_LOCATOR_BYTES_TOGETHER)
        return fail(VHDX_E_LIMIT, "the parent locators of %zu images have more than %" PRIu64 " bytes; %s", s->nr_images,
                    MAX_LOCATOR_BYTES_TOGETHER, way_out(s));
    image->locator = img->locator;
    img->locator = NULL;
    return keep_recorded_paths(image);
}

/* What a folder or file cannot be blamed for ends the survey: the next would meet the same. */
static bool is_our_trouble(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOMEM;
}

/* Note why the file is no use, or pass on what concerns us and not the file. */
static int keep_problem(struct survey_image *image, int code)
{
    if (is_our_trouble(-code))
        return code;
    image->error = code;
    image->problem = strdup(error_message());
    return image->problem ? 0 : fail_memory("a message");
}

/* Does another program write it?  No lock is taken: who opens the image at this moment, or changes what it does with it, as
 * virtual machines do for a block job, would be refused. */
static int look_for_writer(const struct vhdx_survey *s, struct survey_image *image, struct storage *file)
{
    return s->options->flags & VHDX_OPEN_FORCE_SHARE ? 0 : storage_posix_is_written(file, &image->in_use);
}

static int open_copy(struct storage *file, struct image **img)
{
    struct storage *copy;
    int fd = fcntl(file->fd, F_DUPFD_CLOEXEC, 0);
    int r = fd < 0 ? fail_errno("cannot open") : storage_posix_from_fd(fd, false, true, &copy);

    return r < 0 ? r : image_open(copy, IMAGE_UNVERIFIED, 1, img);
}

/* Open what is in file.  What is read while somebody writes may be out of step: then look again, a few times.  It was not locked,
 * so the writer may also have come since. */
static int open_unlocked(const struct vhdx_survey *s, struct survey_image *image, struct storage *file, struct image **img)
{
    enum { MAX_LOOKS = 4 };
    struct error_text text;
    int r = look_for_writer(s, image, file);

    for (int looks = 0; r == 0; looks++) {
        int code = open_copy(file, img);
        if (code == 0)
            return 0;
        error_save(&text);
        r = look_for_writer(s, image, file);
        if (r == 0 && (!image->in_use || looks + 1 == MAX_LOOKS)) {
            error_restore(&text);
            return code;
        }
    }
    return r;
}

static int describe(struct vhdx_survey *s, struct survey_image *image, struct storage *file)
{
    struct image *img = NULL;

    int r = storage_length(file, &image->info.file_size);
    if (r == 0)
        r = storage_usage(file, &image->info.disk_usage);
    if (r == 0)
        r = open_unlocked(s, image, file, &img);
    if (r < 0)
        return keep_problem(image, r);
    r = keep_facts(s, image, img);
    image_close(img);
    return r;
}

/* Of a file's names in one folder the shortest is shown, so that it does not depend on the folder's order, and not what an
 * interrupted snapshot added; but a file that was asked about is called as it was then. */
static int keep_better_name(const struct vhdx_survey *s, struct survey_image *image, const char *path)
{
    const char *slash = strrchr(path, '/');
    size_t folder = slash ? (size_t)(slash - path) + 1 : 0, length = strlen(path), present = strlen(image->path);

    if ((s->of_image && image->wanted) || strncmp(path, image->path, folder) != 0 || strchr(image->path + folder, '/') ||
        length > present || (length == present && strcmp(path, image->path) > 0))
        return 0;
    char *copy = strdup(path);
    if (!copy)
        return fail_memory("a path");
    free(image->path);
    image->path = copy;
    return 0;
}

int survey_file(struct vhdx_survey *s, int fd, const char *path, bool wanted, bool demand_image, size_t *index)
{
    struct survey_image image = {
        .wanted = wanted, .parent = VHDX_NO_IMAGE, .instead = VHDX_NO_IMAGE, .info.struct_bytes = sizeof image.info};
    struct storage *file;

    *index = VHDX_NO_IMAGE;
    int r = storage_posix_from_fd(fd, false, demand_image, &file);
    if (r < 0)
        return r;
    image.identity = file->identity;
    size_t known = s->nr_buckets ? *bucket_of(s, &image.identity) : 0;
    if (known || (!demand_image && !is_called_image(path) && !survey_begins_like_image(file))) {
        storage_close(file);
        *index = known ? known - 1 : VHDX_NO_IMAGE;
        return known && !demand_image ? keep_better_name(s, &s->images[known - 1], path) : 0;
    }
    image.path = strdup(path);
    r = image.path ? describe(s, &image, file) : fail_memory("a path");
    storage_close(file);
    if (r < 0) {
        survey_image_free(&image);
        return r;
    }
    return append(s, &image, index);
}

/* A file that cannot even be opened is worth a word if it is called an image. */
static int enter_unopened(struct vhdx_survey *s, const struct stat *st, const char *path, bool wanted, int error)
{
    struct survey_image image = {.identity = {.device = st->st_dev, .inode = st->st_ino},
                                 .wanted = wanted,
                                 .parent = VHDX_NO_IMAGE,
                                 .instead = VHDX_NO_IMAGE,
                                 .info = {.struct_bytes = sizeof image.info,
                                          .file_size = (uint64_t)st->st_size,
                                          .disk_usage = (uint64_t)st->st_blocks * 512}};
    size_t index;

    if (!is_called_image(path) || (s->nr_buckets && *bucket_of(s, &image.identity)))
        return 0;
    errno = -error;
    int r = keep_problem(&image, fail_errno("cannot open"));
    image.path = r == 0 ? strdup(path) : NULL;
    if (!image.path) {
        survey_image_free(&image);
        return r < 0 ? r : fail_memory("a path");
    }
    return append(s, &image, &index);
}

/* ---- folders ---- */

int survey_report_progress(const struct vhdx_survey *s)
{
    if (s->progress && s->progress(s->opaque, s->nr_files, 0) != 0)
        return fail(-ECANCELED, "cancelled after %" PRIu64 " files", s->nr_files);
    return 0;
}

struct walk {
    struct vhdx_survey *s;
    bool wanted, below;
    bool incomplete; /* something in the present folder could not be looked at */
    dev_t device;
    unsigned depth;
};

static int walk_folder(struct walk *w, int folder, const char *path);

static int enter_folder(struct walk *w, int handle, const struct stat *st, const char *path)
{
    if (!w->below)
        return 0;
    if (st->st_dev != w->device) {
        w->s->nr_elsewhere++;
        return 0;
    }
    if (w->depth == SURVEY_MAX_FOLDERS_DEEP) {
        w->s->nr_skipped++;
        return 0;
    }
    int fd = openat(handle, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && is_our_trouble(errno))
        return fail_errno("cannot open the folder %s", path);
    if (fd < 0) {
        w->s->nr_skipped += errno != ENOENT;
        return 0;
    }
    w->depth++;
    int r = walk_folder(w, fd, path);
    w->depth--;
    return r;
}

const char *survey_behind_same_beginning(const char *name, const char *image)
{
    size_t n = image[0] ? strcspn(image + 1, ".") + 1 : 0; /* the dot of a hidden file is not the first one */

    return n > 0 && strncasecmp(name, image, n) == 0 ? name + n : NULL;
}

/* Has the survey to know what is in the file of this name? */
static bool is_looked_into(const struct vhdx_survey *s, const char *name)
{
    if (!s->likely || is_called_image(name))
        return true;
    const char *behind = survey_behind_same_beginning(name, s->likely);
    return behind && (*behind == '.' || *behind == '\0');
}

/* Is what stat(2) may not ask about on another file system?  Another user's FUSE mount tells nothing else, one without a server
 * perhaps that. */
static bool lies_elsewhere(const struct walk *w, int handle)
{
    struct statx st;

    return statx(handle, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0, &st) == 0 && makedev(st.stx_dev_major, st.stx_dev_minor) != w->device;
}

/* What a name leads to is judged by a handle, before it is really opened: no FIFO is waited for, no device poked. */
static int enter_name(struct walk *w, int folder, const char *name, const char *folder_path)
{
    const char *slash = folder_path[0] && strcmp(folder_path, "/") != 0 ? "/" : "";
    char path[PATH_MAX];
    size_t index;
    struct stat st;
    int r = 0, n = snprintf(path, sizeof path, "%s%s%s", strcmp(folder_path, ".") == 0 ? "" : folder_path,
                            strcmp(folder_path, ".") == 0 ? "" : slash, name);

    if (n >= (int)sizeof path) {
        w->incomplete = true;
        return 0;
    }
    int handle = openat(folder, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (handle < 0 || fstat(handle, &st) < 0) {
        int error = errno;
        if (is_our_trouble(error))
            r = fail_errno("cannot look at %s", path);
        else if (handle >= 0 && lies_elsewhere(w, handle))
            w->s->nr_elsewhere += w->below;
        else
            w->incomplete |= error != ENOENT; /* which is gone meanwhile */
        if (handle >= 0)
            close(handle);
        return r;
    }
    if (S_ISDIR(st.st_mode)) {
        r = enter_folder(w, handle, &st, path);
    } else if (S_ISREG(st.st_mode) && is_looked_into(w->s, name)) {
        w->s->nr_files++;
        int fd = open_regular(handle);
        if (is_our_trouble(-fd)) {
            errno = -fd;
            r = fail_errno("cannot open %s", path);
        } else {
            r = fd < 0 ? enter_unopened(w->s, &st, path, w->wanted, fd)
                       : survey_file(w->s, fd, path, w->wanted, false, &index);
        }
    }
    close(handle);
    return r < 0 ? r : survey_report_progress(w->s);
}

/* folder: owned. */
static int walk_folder(struct walk *w, int folder, const char *path)
{
    bool outer_incomplete = w->incomplete;
    DIR *dir = fdopendir(folder);
    struct dirent *entry;
    int r = 0;

    if (!dir) {
        r = fail_errno("cannot list the folder %s", path);
        close(folder);
        return r;
    }
    w->incomplete = false;
    while (r == 0 && (errno = 0, entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 && !new_file_is_temporary(entry->d_name))
            r = enter_name(w, folder, entry->d_name, path);
    }
    if (r == 0 && errno != 0) {
        if (w->depth == 0)
            r = fail_errno("cannot list the folder");
        else
            w->incomplete = true;
    }
    closedir(dir);
    w->s->nr_skipped += w->incomplete;
    w->incomplete = outer_incomplete;
    return r;
}

/* Without the slashes at the end, that would stand twice in the paths. */
static char *clean_folder(const char *folder)
{
    size_t n = strlen(folder);

    while (n > 1 && folder[n - 1] == '/')
        n--;
    return n == 0 ? strdup(".") : strndup(folder, n);
}

int survey_folder(struct vhdx_survey *s, const char *folder, bool wanted, bool below)
{
    struct walk w = {.s = s, .wanted = wanted, .below = below};
    char *path = clean_folder(folder);
    struct stat st;

    if (!path)
        return fail_memory("a path");
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int r = fd < 0 || fstat(fd, &st) < 0 ? fail_errno("cannot open the folder") : 0;
    if (r == 0) {
        w.device = st.st_dev;
        r = walk_folder(&w, fd, path);
    } else if (fd >= 0) {
        close(fd);
    }
    free(path);
    return r;
}
