/* SPDX-License-Identifier: MIT */
#include "cmd.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "output.h"
#include "signals.h"

void open_options_fill(struct vhdx_open_options *options, uint32_t flags)
{
    *options = (struct vhdx_open_options)VHDX_OPEN_OPTIONS_INIT;
    options->flags = flags;
    if (common.force_share)
        options->flags |= VHDX_OPEN_FORCE_SHARE;
    if (common.allow_parent_path)
        options->flags |= VHDX_OPEN_ALLOW_PARENT_PATH;
    if (!(flags & (VHDX_OPEN_RAW | VHDX_OPEN_NO_PARENT)))
        options->parent = common.parent;
    options->parent_dirs = common.parent_dirs.texts;
    options->nr_parent_dirs = common.parent_dirs.nr_texts;
}

bool is_same_file(const char *a, const char *b)
{
    struct stat x, y;

    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* What libnbd can connect to by itself. */
bool is_nbd_uri(const char *name)
{
    static const char *const schemes[] = {"nbd://",        "nbds://",       "nbd+unix://",
                                          "nbds+unix://",  "nbd+vsock://",  "nbds+vsock://"};

    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++) {
        if (strncmp(name, schemes[i], strlen(schemes[i])) == 0)
            return true;
    }
    return false;
}

static int hex_value(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* uri with what may be spelled in several ways spelled in one: percent-encoding, case of the host, the protocol's own port, an
 * empty path.  NULL without memory. */
static char *spell_uri_plainly(const char *uri)
{
    static const char port[] = ":10809";
    char *plain = malloc(strlen(uri) + 2), *to = plain;
    const char *host = strstr(uri, "://") + 3;
    const char *rest = host + strcspn(host, "/?");
    size_t host_bytes = (size_t)(rest - host);

    if (!plain)
        return NULL;
    if (host_bytes >= sizeof port - 1 && strncmp(rest - (sizeof port - 1), port, sizeof port - 1) == 0)
        host_bytes -= sizeof port - 1;
    to = mempcpy(to, uri, (size_t)(host - uri));
    for (size_t i = 0; i < host_bytes; i++)
        *to++ = (char)tolower((unsigned char)host[i]);
    if (*rest != '/')
        *to++ = '/';
    for (; *rest; rest++) {
        int high = *rest == '%' ? hex_value(rest[1]) : -1, low = high >= 0 ? hex_value(rest[2]) : -1;
        if (low >= 0)
            rest += 2;
        *to++ = low >= 0 ? (char)(high * 16 + low) : *rest;
    }
    *to = '\0';
    return plain;
}

bool is_same_export(const char *a, const char *b)
{
    if (!is_nbd_uri(a) || !is_nbd_uri(b))
        return false;
    char *plain_a = spell_uri_plainly(a), *plain_b = spell_uri_plainly(b);
    bool same = plain_a && plain_b && strcmp(plain_a, plain_b) == 0;
    free(plain_a);
    free(plain_b);
    return same;
}

int check_image_name(const char *name)
{
    if (*name == '\0') {
        print_error(NULL, "the name of an image or disk is empty");
        return -1;
    }
    if (is_nbd_uri(name)) {
        print_error(name, "this needs a file here, not an NBD server; nbdfuse(1) makes one of the other");
        return -1;
    }
    if (strcmp(name, "-") == 0) {
        print_error(
            name,
            "standard input cannot be used as an image: it has to be a file or block device (a file of this "
            "name is ./-)");
        return -1;
    }
    return 0;
}

int check_disk_name(const char *name)
{
    if (strncmp(name, "nbd:", 4) == 0 && !is_nbd_uri(name)) {
        print_error(name, "this is no NBD URI: they begin with nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH (a file of this "
                    "name is ./%s)", name);
        return -1;
    }
    return is_nbd_uri(name) ? 0 : check_image_name(name);
}

uint32_t open_flags(const char *name, int format)
{
    uint32_t flags = format == SOURCE_RAW ? VHDX_OPEN_RAW : 0;

    if (is_nbd_uri(name))
        flags |= VHDX_OPEN_NBD | (format == SOURCE_AUTO ? VHDX_OPEN_DETECT : 0);
    return flags;
}

void limit_waiting_for(const char *name)
{
    enum { PATIENCE_SECONDS = 5 };

    if (is_nbd_uri(name))
        signals_limit(PATIENCE_SECONDS);
}

bool may_be_raw(const char *name)
{
    int kind = vhdx_probe(name);

    return kind == VHDX_KIND_UNKNOWN || kind == VHDX_KIND_EMPTY;
}

void print_open_error(const char *name, int format, int code, const char *message)
{
    static const char for_writing[] = "cannot open for writing"; /* and it can be read: so says the library alone, not of parents */

    if (!message)
        message = vhdx_strerror(code);
    /* The code may also be a parent's, which no option of ours makes raw. */
    if (code == VHDX_E_NOT_VHDX && format == SOURCE_AUTO && !is_nbd_uri(name) && may_be_raw(name))
        print_error(name, "%s; if it is a raw disk, say so with -f raw", message);
    else if (strncmp(message, for_writing, sizeof for_writing - 1) == 0)
        print_error(name, "%s; -r opens it for reading only", message);
    else
        print_image_error(name, message);
}

int open_image(const char *name, int format, vhdx_disk **disk)
{
    return open_image_with(name, format, 0, disk);
}

/* Whoever can write an export's first sectors, such as the guest whose disk it is, must not choose what is read in its place. */
static int refuse_detected_image(const char *name, vhdx_disk **disk)
{
    struct vhdx_info info = {.struct_bytes = sizeof info};
    int code = vhdx_get_info(*disk, 0, &info);

    if (code == 0 && info.subformat == VHDX_RAW)
        return 0;
    if (code < 0)
        print_library_error(name, code);
    else
        print_error(name, "the export begins like a VHDX image, which may be the work of whoever uses the disk; say by -f (-F for the second "
                    "of two) which it is: vhdx means the disk in the image, raw the export as it is");
    vhdx_close(*disk);
    *disk = NULL;
    return code < 0 ? code : -EINVAL;
}

int open_image_with(const char *name, int format, uint32_t flags, vhdx_disk **disk)
{
    struct vhdx_open_options options;

    open_options_fill(&options, flags | open_flags(name, format));
    int code = vhdx_open(name, &options, disk);
    if (code < 0) {
        char *message = strdup(library_message(code));
        print_open_error(name, format, code, message);
        free(message);
    } else if (format == SOURCE_AUTO && is_nbd_uri(name)) {
        code = refuse_detected_image(name, disk);
    }
    return code;
}

void tell_how_to_open(const char *name, const char *parent)
{
    struct vhdx_open_options options = VHDX_OPEN_OPTIONS_INIT;
    vhdx_disk *disk;

    options.flags = VHDX_OPEN_FORCE_SHARE;
    int code = vhdx_open(name, &options, &disk);
    if (code == 0)
        vhdx_close(disk);
    else if (code == VHDX_E_PARENT_POLICY)
        print_warning(name, "its parent, %s, is in another folder, where it is not looked for unasked: open it with --parent-dir", parent);
}
