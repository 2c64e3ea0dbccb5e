/* SPDX-License-Identifier: MIT */
#include "crash-run.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/math.h"
#include "image/image.h"

static void must(bool good)
{
    if (!good)
        abort();
}

/* ---- the image ---- */

static const char *const locator[][2] = {
    {"parent_linkage", "{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}"},
    {"relative_path", ".\\parent.vhdx"},
};

static void make_plan(struct crash_run *run)
{
    const struct crash_setup *s = &run->setup;
    struct image_plan *p = &run->plan;

    image_plan_init(p, MIB(s->virtual_mib) - s->short_by, (uint32_t)MIB(s->block_mib), s->sector_size,
                    s->nr_parents > 0 ? locator : NULL, ARRAY_LENGTH(locator));
    p->header.log_length = (uint32_t)MIB(s->log_mib);
    p->metadata_offset += MIB(s->log_mib - 1);
    p->bat_offset += MIB(s->log_mib - 1);
    if (s->fixed)
        p->values.parameter_flags |= PARAMETER_LEAVE_ALLOCATED;
    p->file_length = image_plan_blocks_offset(p) + (s->fixed ? MIB(s->virtual_mib) : 0);
    run->geometry = image_plan_geometry(p);
}

enum { FOREIGN_MIB = 6 };

/* What earlier sessions have left in a child's file: free space with data of blocks long gone, and behind it bitmap blocks in
 * which every bit is set and none means anything. */
static void leave_behind(struct crash_run *run)
{
    const struct crash_setup *s = &run->setup;
    uint64_t at = image_plan_blocks_offset(&run->plan), nr_chunks = run->geometry.nr_chunks;

    if (s->foreign_space)
        build_fill(run->file, at, 0xee, MIB(FOREIGN_MIB));
    at += MIB(FOREIGN_MIB);
    for (uint64_t chunk = 0; s->stale_bits && chunk < nr_chunks; chunk++, at += BITMAP_BLOCK_BYTES) {
        build_fill(run->file, at, 0xff, BITMAP_BLOCK_BYTES);
        build_bitmap(&run->plan, run->file, chunk, BITMAP_PRESENT, at);
    }
}

void crash_run_init(struct crash_run *run, const struct crash_setup *setup, uint64_t seed)
{
    uint64_t blocks[MAX_LISTED_BLOCKS];

    *run = (struct crash_run){.setup = *setup, .random = seed * UINT64_C(0x9e3779b97f4a7c15) + 1};
    make_plan(run);
    for (uint32_t i = 0; i < setup->nr_blocks; i++)
        blocks[i] = i * setup->block_stride;
    if (setup->short_by > 0)
        blocks[setup->nr_blocks - 1] = run->geometry.nr_blocks - 1;
    history_init(&run->history, MIB(setup->block_mib), blocks, setup->nr_blocks);
    run->file = build_memory_image(&run->plan);
    if (setup->device_mib > 0) { /* full of what was there before */
        uint64_t at = image_plan_blocks_offset(&run->plan);
        build_fill(run->file, at, 0xee, MIB(setup->device_mib) - at);
    }
    for (uint32_t i = 0; setup->fixed && i < setup->nr_blocks; i++)
        build_block(&run->plan, run->file, i, PAYLOAD_FULLY_PRESENT,
                    image_plan_blocks_offset(&run->plan) + i * MIB(setup->block_mib));
    if (setup->nr_parents > 0) {
        struct crash_parents_setup parents = {.nr = setup->nr_parents, .sector_size = setup->sector_size,
                                              .block_mib = setup->parent_block_mib, .virtual_size = run->plan.values.virtual_size,
                                              .seed = seed};
        run->parents = crash_parents_new(&parents, &run->history);
        leave_behind(run);
    }
    must(recording_init(&run->recording, run->file) == 0);
    fault_init(&run->fault);
}

void crash_run_destroy(struct crash_run *run)
{
    if (run->img)
        crash_run_close(run);
    fault_destroy(&run->fault);
    recording_destroy(&run->recording);
    storage_close(run->file);
    crash_parents_free(run->parents);
    history_destroy(&run->history);
}

/* The disk that img is with its parents. */
static void make_disk(const struct crash_run *run, struct image *img, struct layer layers[MAX_LAYERS], struct vhdx_disk *disk)
{
    uint64_t size = run->plan.values.virtual_size;

    layers[0] = (struct layer){.img = img, .size = size};
    for (uint32_t n = 0; n < run->setup.nr_parents; n++)
        layers[1 + n] = run->parents->layers[n];
    *disk = (struct vhdx_disk){.layers = layers, .nr_layers = 1 + run->setup.nr_parents, .size = size};
}

int crash_run_open(struct crash_run *run)
{
    struct storage *s;

    must(recorder_wrap(&run->recording, run->file, &run->recorder) == 0);
    must(fault_wrap(&run->fault, run->recorder, &s) == 0);
    if (run->setup.cannot_punch) /* unless a test arms something else */
        fault_arm(&run->fault, &(struct fault_plan){.kind = FAULT_PUNCH, .nth = 1, .forever = true, .error = -ENOTSUP});
    if (run->setup.device_mib > 0)
        fault_arm(&run->fault, &(struct fault_plan){.kind = FAULT_TRUNCATE, .nth = 1, .forever = true, .error = -ENOTSUP});
    int r = image_open(s, IMAGE_WRITABLE, 64, &run->img);
    if (r < 0) {
        storage_close(run->recorder);
        run->recorder = NULL;
        return r;
    }
    make_disk(run, run->img, run->layers, &run->disk);
    return 0;
}

int crash_run_close(struct crash_run *run)
{
    uint32_t no = history_begin(&run->history, REQUEST_FLUSH, 0, 0, false, recording_nr_steps(&run->recording));
    int r = image_close(run->img);

    history_end(&run->history, no, r == 0, recording_nr_steps(&run->recording));
    run->img = NULL;
    storage_close(run->recorder);
    run->recorder = NULL;
    return r;
}

/* ---- requests ---- */

static uint32_t begin(struct crash_run *run, enum request_kind kind, uint64_t guest_offset, uint64_t bytes, bool fua)
{
    return history_begin(&run->history, kind, guest_offset, bytes, fua, recording_nr_steps(&run->recording));
}

static int end(struct crash_run *run, uint32_t no, int r)
{
    history_end(&run->history, no, r == 0, recording_nr_steps(&run->recording));
    return r;
}

int crash_run_write(struct crash_run *run, uint64_t guest_offset, uint64_t bytes, bool fua)
{
    uint32_t no = begin(run, REQUEST_WRITE, guest_offset, bytes, fua);
    struct iovec iov = {malloc(bytes), bytes};

    must(iov.iov_base != NULL);
    history_fill(no, guest_offset, bytes, iov.iov_base);
    int r = disk_pwritev(&run->disk, &iov, 1, guest_offset, fua ? VHDX_FUA : 0);
    free(iov.iov_base);
    return end(run, no, r);
}

int crash_run_zero(struct crash_run *run, uint64_t guest_offset, uint64_t bytes, bool fua)
{
    uint32_t no = begin(run, REQUEST_ZERO, guest_offset, bytes, fua);
    uint32_t flags = (fua ? VHDX_FUA : 0) | (no % 3 == 0 ? VHDX_NO_HOLE : 0); /* to the guest they are the same */

    return end(run, no, disk_zero(&run->disk, guest_offset, bytes, flags));
}

int crash_run_discard(struct crash_run *run, uint64_t guest_offset, uint64_t bytes, bool fua)
{
    uint32_t no = begin(run, REQUEST_DISCARD, guest_offset, bytes, fua);

    return end(run, no, disk_discard(&run->disk, guest_offset, bytes, fua ? VHDX_FUA : 0));
}

int crash_run_flush(struct crash_run *run)
{
    uint32_t no = begin(run, REQUEST_FLUSH, 0, 0, false);

    return end(run, no, disk_flush(&run->disk));
}

/* SplitMix64 */
uint64_t crash_random(struct crash_run *run, uint64_t below)
{
    uint64_t z = run->random += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (z ^ z >> 31) % below;
}

/* Large parts of a block, which together make it whole. */
static int random_large_write(struct crash_run *run, uint32_t i, bool fua)
{
    uint64_t visible = crash_visible(run, i), split = align_down(visible * (1 + crash_random(run, 7)) / 8, CELL_BYTES);

    switch (crash_random(run, 3)) {
    case 0:
        return crash_run_write(run, crash_block(run, i), visible, fua);
    case 1:
        return crash_run_write(run, crash_block(run, i), max_u64(split, CELL_BYTES), fua);
    default:
        return crash_run_write(run, crash_block(run, i) + split, visible - split, fua);
    }
}

static int random_request(struct crash_run *run)
{
    static const uint32_t sizes[] = {512, 512, 1024, 4096, 4096, 6144, 8192, 65536};
    bool child = run->setup.nr_parents > 0;
    uint64_t unit = child ? CELL_BYTES : run->setup.sector_size; /* parts of sectors matter where parents complete them */
    uint32_t i = (uint32_t)crash_random(run, run->history.nr_blocks);
    uint64_t bytes = align_up(sizes[crash_random(run, ARRAY_LENGTH(sizes))], unit), visible = crash_visible(run, i);
    uint64_t at = crash_random(run, 3) * KIB(16) + crash_random(run, 8) * unit; /* few places, so that they meet often */
    bool fua = crash_random(run, 16) == 0;
    uint64_t kind = crash_random(run, 20);

    at %= visible;
    bytes = min_u64(bytes, visible - at);
    if (kind < 5)
        return crash_run_flush(run);
    if (kind < 6)
        return crash_run_discard(run, crash_block(run, i), visible, fua);
    if (kind < 8)
        return crash_run_zero(run, crash_block(run, i), visible, fua);
    if (kind < 9)
        return crash_run_discard(run, crash_block(run, i) + at, bytes, fua);
    if (kind < 10)
        return crash_run_zero(run, crash_block(run, i) + at, bytes, fua);
    if (kind < 11 && run->setup.block_stride == 1 && i + 1 < run->history.nr_blocks && run->setup.short_by == 0) /* across two blocks */
        return crash_run_write(run, crash_block(run, i + 1) - align_up(bytes / 2, unit), bytes, fua);
    if (kind < 13 && child)
        return random_large_write(run, i, fua);
    return crash_run_write(run, crash_block(run, i) + at, bytes, fua);
}

int crash_run_random(struct crash_run *run, unsigned nr)
{
    int r = 0;

    for (unsigned n = 0; r == 0 && n < nr; n++)
        r = random_request(run);
    return r;
}

/* ---- judging ---- */

/* Sanitizers are to see the library at work and every way of judging, not every state: they take ten times as long. */
#ifdef __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif
enum { FEWER_STATES = SANITIZED ? 8 : 1 };

struct judgement {
    struct crash_run *run;
    const struct crash_budget *budget;
    struct crash_file *file;
    struct storage *to; /* the file */
    struct crash_view *view, *other;
    uint64_t nr_states;
};

/* Through the chain, as a guest would see it. */
static const char *content_by_library(struct judgement *j, struct image *img)
{
    const struct history *h = &j->run->history;
    uint64_t cells = h->block_bytes / CELL_BYTES;
    uint8_t *block = malloc(h->block_bytes);
    struct layer layers[MAX_LAYERS];
    struct vhdx_disk disk;
    const char *error = NULL;

    must(block != NULL);
    make_disk(j->run, img, layers, &disk);
    for (uint32_t i = 0; !error && i < h->nr_blocks; i++) {
        uint64_t visible = crash_visible(j->run, i);
        if (disk_pread(&disk, block, visible, crash_block(j->run, i)) < 0)
            error = error_message();
        for (uint64_t c = 0; !error && c < visible / CELL_BYTES; c++)
            error = history_judge(h, i * cells + c, block + c * CELL_BYTES);
    }
    free(block);
    return error;
}

static const char *by_library(struct judgement *j, unsigned flags)
{
    const struct history *h = &j->run->history;
    static _Thread_local char text[1200];
    struct image *img;
    struct bat_entry e;
    const char *error = NULL;

    int r = image_open(crash_file_open(j->file), flags, 64, &img);
    for (uint32_t i = 0; r == 0 && i < h->nr_blocks; i++) {
        r = bat_lookup(img, h->blocks[i], &e);
        if (r == 0 && (e.state != j->view->states[i] || e.file_offset != j->view->places[i])) {
            image_close(img);
            return "the library finds other entries than the second reader";
        }
    }
    if (r == 0 && j->run->parents)
        error = content_by_library(j, img);
    if (r == 0)
        r = image_close(img);
    if (r == 0)
        return error;
    snprintf(text, sizeof text, "the library, flags %u: %d, %s", flags, r, error_message());
    return text;
}

/* The state that the file is in now. */
static const char *judge_state(struct judgement *j)
{
    const struct crash_run *run = j->run;
    const char *error = crash_read(j->file, &run->plan, &run->history, j->view);

    j->nr_states++;
    if (error || j->budget->open_every == 0 || j->nr_states % j->budget->open_every != 0)
        return error;
    error = by_library(j, 0);
    if (!error)
        error = by_library(j, IMAGE_WRITABLE);
    if (!error)
        error = crash_read(j->file, &run->plan, &run->history, j->other);
    if (!error && (j->other->dirty || memcmp(j->view->places, j->other->places, sizeof j->view->places) != 0))
        error = "replay into the file left something else than replay in memory";
    return error;
}

static const char *judge_all_subsets(struct judgement *j, size_t nr_steps)
{
    const struct recording *r = &j->run->recording;
    enum powerloss_unit unit = POWERLOSS_4KIB;
    uint64_t nr = powerloss_count(r, nr_steps, unit, j->budget->exhaustive);
    const char *error = NULL;

    if (nr == 0)
        nr = powerloss_count(r, nr_steps, unit = POWERLOSS_STEPS, j->budget->exhaustive);
    for (uint64_t n = 0; !error && n < nr; n++) {
        crash_file_mark(j->file);
        must(powerloss_subset(r, nr_steps, unit, n, j->to) == 0);
        error = judge_state(j);
        crash_file_rollback(j->file);
    }
    return error;
}

static bool request_returned_at(const struct history *h, size_t nr_steps)
{
    for (uint32_t no = 0; no < h->nr_requests; no++) {
        if (h->requests[no].returned > 0 && h->requests[no].end_step == nr_steps)
            return true;
    }
    return false;
}

/* Between requests both headers say the same, so that either may be lost (D7). */
static const char *judge_without_a_header(struct judgement *j, size_t nr_steps)
{
    const char *error = NULL;

    for (unsigned slot = 0; !error && slot < 2; slot++) {
        crash_file_mark(j->file);
        must(powerloss_suffer(&j->run->recording, nr_steps, crash_random(j->run, UINT64_MAX), j->to) == 0);
        must(storage_zero(j->to, HEADER_OFFSET(slot), HEADER_RAW_BYTES) == 0);
        error = judge_state(j);
        crash_file_rollback(j->file);
    }
    return error;
}

static const char *judge_moment(struct judgement *j, size_t nr_steps)
{
    const struct recording *r = &j->run->recording;
    bool last = nr_steps == r->nr_steps;
    const char *error = NULL;

    if (j->budget->exhaustive > 0 && (last || r->steps[nr_steps].kind == STEP_FLUSH))
        error = judge_all_subsets(j, nr_steps);
    if (!error && request_returned_at(&j->run->history, nr_steps))
        error = judge_without_a_header(j, nr_steps);
    bool all_durable = powerloss_durable(r, nr_steps) == nr_steps; /* then one state is all there is */
    for (unsigned n = 0; !error && n < (all_durable ? 1 : j->budget->random); n++) {
        crash_file_mark(j->file);
        must(powerloss_suffer(r, nr_steps, crash_random(j->run, UINT64_MAX), j->to) == 0);
        error = judge_state(j);
        crash_file_rollback(j->file);
    }
    return error;
}

const char *crash_run_judge(struct crash_run *run, const struct crash_budget *budget, uint64_t *nr_states)
{
    static _Thread_local char text[1600];
    struct recording *r = &run->recording;
    struct crash_budget fewer = *budget;
    static struct crash_view view, other; /* large; one thread at a time judges */
    struct judgement j = {.run = run, .budget = &fewer, .file = crash_file_new(), .view = &view, .other = &other};
    const char *error = NULL;
    size_t durable = 0;

    fewer.exhaustive /= FEWER_STATES;
    fewer.random = div_round_up(budget->random, FEWER_STATES);
    crash_file_load(j.file, r->base);
    j.to = crash_file_open(j.file);
    history_index(&run->history);
    for (size_t nr = 0; !error && nr <= r->nr_steps; nr++) {
        size_t now = powerloss_durable(r, nr);
        must(recording_apply(r, durable, now, j.to) == 0);
        durable = now;
        history_go(&run->history, nr);
        error = judge_moment(&j, nr);
        if (error) {
            snprintf(text, sizeof text, "after step %zu of %zu (%zu durable): %s", nr, r->nr_steps, durable, error);
            error = text;
        }
    }
    *nr_states += j.nr_states;
    storage_close(j.to);
    crash_file_free(j.file);
    return error;
}

const char *crash_run_crash(struct crash_run *run)
{
    struct recording *r = &run->recording;
    struct crash_file *f = crash_file_new();
    static struct crash_view view; /* large */
    uint32_t *base = calloc(run->history.nr_cells, sizeof *base);
    size_t nr = crash_random(run, r->nr_steps + 1);
    struct storage *s;

    must(base != NULL);
    must(powerloss_random(r, nr, crash_random(run, UINT64_MAX), &s) == 0);
    crash_file_load(f, s);
    history_index(&run->history);
    history_go(&run->history, nr);
    const char *error = crash_read(f, &run->plan, &run->history, &view);
    if (!error) {
        crash_identify(f, &run->plan, &run->history, &view, base);
        history_restart(&run->history, base);
        recording_destroy(r);
        storage_close(run->file);
        run->file = s;
        must(recording_init(r, s) == 0);
    } else {
        storage_close(s);
    }
    crash_file_free(f);
    free(base);
    return error;
}

const char *crash_run_read_back(struct crash_run *run)
{
    struct history *h = &run->history;
    uint8_t *block = malloc(h->block_bytes);
    const char *error = NULL;

    must(block != NULL);
    uint32_t no = begin(run, REQUEST_FLUSH, 0, 0, false); /* for reading all is there that has returned */
    end(run, no, 0);
    history_index(h);
    history_go(h, recording_nr_steps(&run->recording) + 1);
    for (uint32_t i = 0; !error && i < h->nr_blocks; i++) {
        uint64_t cells = h->block_bytes / CELL_BYTES, visible = crash_visible(run, i);
        if (disk_pread(&run->disk, block, visible, crash_block(run, i)) < 0)
            error = error_message();
        for (uint64_t c = 0; !error && c < visible / CELL_BYTES; c++)
            error = history_judge(h, i * cells + c, block + c * CELL_BYTES);
    }
    history_forget(h, no);
    free(block);
    return error;
}

const char *crash_run_check_parents(const struct crash_run *run)
{
    return crash_parents_check(run->parents);
}

static bool step_is_legal(const struct crash_run *run, const struct step *step)
{
    const struct image_plan *p = &run->plan;
    const struct header *log = &p->header;

    if (step->kind == STEP_FLUSH)
        return true;
    if (step->kind == STEP_TRUNCATE)
        return step->offset >= image_plan_blocks_offset(p);
    if (step->offset == HEADER_OFFSET(0) || step->offset == HEADER_OFFSET(1))
        return step->bytes == HEADER_RAW_BYTES;
    return range_fits(step->offset - log->log_offset, step->bytes, log->log_length) ||
           range_fits(step->offset - p->bat_offset, step->bytes, p->bat_length) || step->offset >= image_plan_blocks_offset(p);
}

const char *crash_run_check_steps(const struct crash_run *run)
{
    static _Thread_local char text[120];

    for (size_t i = 0; i < run->recording.nr_steps; i++) {
        const struct step *step = &run->recording.steps[i];
        if (!step_is_legal(run, step)) {
            snprintf(text, sizeof text, "step %zu of kind %d changes 0x%" PRIx64, i, (int)step->kind, step->offset);
            return text;
        }
    }
    return NULL;
}

unsigned crash_seeds(unsigned normally, uint64_t *first)
{
    const char *text = getenv("VHDX_SEEDS");
    unsigned long long from = 1, to;

    *first = 1;
    if (!text)
        return normally;
    int n = sscanf(text, "%llu-%llu", &from, &to);
    if (n == 1)
        return (unsigned)from;
    *first = from;
    return n == 2 && to >= from ? (unsigned)(to - from + 1) : normally;
}
