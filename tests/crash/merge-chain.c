/* SPDX-License-Identifier: MIT */
#include "merge-chain.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/le.h"
#include "base/math.h"
#include "chain-model.h"
#include "disk/info.h"
#include "format/parent-locator.h"
#include "image-builder.h"
#include "image/image.h"
#include "image/writer.h"
#include "ops/flatten.h"
#include "ops/merge.h"
#include "ops/relink.h"

static void must(int result)
{
    if (result < 0) {
        fprintf(stderr, "a chain to merge: %s\n", error_message());
        abort();
    }
}

static guid identity_of_layer(uint32_t depth)
{
    guid g = {{'l', 'a', 'y', 'e', 'r'}};

    g.bytes[15] = (uint8_t)(depth + 1);
    return g;
}

/* ---- making it ---- */

/* The model's images all have one identity. */
static void give_identity(struct storage *file, uint32_t depth)
{
    guid mine = identity_of_layer(depth), parent = identity_of_layer(depth + 1);
    struct fault keep;
    struct storage *s;
    struct image *img;

    fault_init(&keep);
    must(fault_wrap(&keep, file, &s));
    must(image_open(s, IMAGE_WRITABLE, 64, &img));
    must(writer_begin_as(img, &mine));
    if (image_has_parent(img))
        must(relink(img, &(struct new_link){.linkage = parent}));
    must(image_close(img));
    fault_destroy(&keep);
}

void merge_chain_make(struct merge_chain *c, const struct merge_setup *setup, uint64_t seed)
{
    struct chain_model_options options = {
        .nr_layers = setup->nr_layers, .sector_size = setup->sector_size, .max_bytes = setup->bytes, .same_size = true};
    struct chain_model model;
    uint64_t random = seed * 7919 + 1;

    *c = (struct merge_chain){.setup = *setup};
    chain_model_make(&model, &options, &random);
    c->size = model.size;
    c->bytes = malloc(c->size);
    assert(c->bytes);
    memcpy(c->bytes, model.bytes, c->size);
    for (uint32_t i = 0; i < setup->nr_layers; i++) {
        c->files[i] = build_copy(model.files[i]);
        give_identity(c->files[i], i);
        fault_init(&c->faults[i]);
    }
    for (uint32_t i = 0; i < setup->into; i++) { /* the library reads them; reading is tested elsewhere */
        struct vhdx_disk state = {.layers = model.disk->layers + i, .nr_layers = setup->nr_layers - i, .size = c->size};
        c->states[i] = malloc(c->size);
        assert(c->states[i]);
        must(disk_pread(&state, c->states[i], c->size, 0));
    }
    disk_close(model.disk);
    chain_model_free(&model);
}

void merge_chain_free(struct merge_chain *c)
{
    for (uint32_t i = 0; i < c->setup.nr_layers; i++) {
        if (c->recorded)
            recording_destroy(&c->recordings[i]);
        fault_destroy(&c->faults[i]);
        storage_close(c->files[i]);
        free(c->states[i]);
    }
    if (c->recorded)
        timeline_destroy(&c->timeline);
    free(c->bytes);
}

void merge_chain_record(struct merge_chain *c)
{
    timeline_init(&c->timeline);
    for (uint32_t i = 0; i < c->setup.nr_layers; i++) {
        must(recording_init(&c->recordings[i], c->files[i]));
        timeline_add(&c->timeline, &c->recordings[i]);
    }
    c->recorded = true;
}

/* ---- opening it ---- */

/* One layer; *recorder is to be closed after the image. */
static int open_layer(struct merge_chain *c, uint32_t depth, bool writable, struct storage **recorder, struct image **img)
{
    struct storage *s;

    *recorder = NULL;
    if (c->recorded)
        must(recorder_wrap(&c->recordings[depth], c->files[depth], recorder));
    must(fault_wrap(&c->faults[depth], *recorder ? *recorder : c->files[depth], &s));
    return image_open(s, writable ? IMAGE_WRITABLE : 0, 64, img);
}

struct opened {
    struct layer layers[MERGE_MAX_LAYERS];
    struct storage *recorders[MERGE_MAX_LAYERS];
};

enum purpose { TO_READ, TO_MERGE, TO_FLATTEN };

static int open_layers(struct merge_chain *c, struct opened *o, enum purpose purpose)
{
    int r = 0;

    *o = (struct opened){0};
    for (uint32_t i = 0; r == 0 && i < c->setup.nr_layers; i++) {
        bool writable = (purpose == TO_MERGE && i <= c->setup.into) || (purpose == TO_FLATTEN && i == 0);
        r = open_layer(c, i, writable, &o->recorders[i], &o->layers[i].img);
        if (r == 0)
            o->layers[i].size = o->layers[i].img->geometry.virtual_size;
        o->layers[i].path = (char *)"layer";
    }
    return r;
}

/* The target first, as the public call does. */
static int close_layers(struct merge_chain *c, struct opened *o)
{
    int r = image_close(o->layers[c->setup.into].img);

    o->layers[c->setup.into].img = NULL;
    for (uint32_t i = 0; i < c->setup.nr_layers; i++) {
        int e = image_close(o->layers[i].img);
        r = r < 0 ? r : e;
        storage_close(o->recorders[i]);
    }
    return r;
}

/* ---- merging ---- */

static int merge_opened(struct merge_chain *c, struct opened *o, bool *was_complete)
{
    struct vhdx_copy_options options = {.struct_bytes = sizeof options, .nr_threads = c->setup.nr_threads ? c->setup.nr_threads : 1};
    struct image *upper[MERGE_MAX_LAYERS];
    char *paths[MERGE_MAX_LAYERS];
    struct vhdx_disk target = {
        .layers = o->layers + c->setup.into, .nr_layers = c->setup.nr_layers - c->setup.into, .size = c->size};
    struct merge m = {
        .upper = upper, .paths = paths, .nr_upper = c->setup.into, .target = &target, .options = &options};

    for (uint32_t i = 0; i < c->setup.into; i++) {
        upper[i] = o->layers[i].img;
        paths[i] = (char *)"layer";
    }
    int r = merge_begin(&m);
    *was_complete = r == 0 && merge_is_complete(&m);
    if (r == 0 && !*was_complete)
        r = merge_run(&m);
    merge_done(&m);
    return r;
}

int merge_chain_merge(struct merge_chain *c, bool *was_complete)
{
    struct opened o;
    int r = open_layers(c, &o, TO_MERGE);

    *was_complete = false;
    if (r == 0)
        r = merge_opened(c, &o, was_complete);
    int closed = close_layers(c, &o);
    return r < 0 ? r : closed;
}

int merge_chain_flatten(struct merge_chain *c)
{
    struct vhdx_copy_options options = {.struct_bytes = sizeof options, .nr_threads = c->setup.nr_threads ? c->setup.nr_threads : 1};
    struct opened o;
    int r = open_layers(c, &o, TO_FLATTEN);

    if (r == 0 && image_has_parent(o.layers[0].img)) {
        struct vhdx_disk disk = {.layers = o.layers, .nr_layers = c->setup.nr_layers, .size = c->size};
        r = flatten_disk(&disk, &options);
    }
    int closed = close_layers(c, &o);
    return r < 0 ? r : closed;
}

/* ---- crashing ---- */

void merge_chain_crash(const struct merge_chain *c, size_t nr_moments, uint64_t seed, struct merge_chain *left)
{
    *left = (struct merge_chain){.setup = c->setup, .size = c->size, .bytes = malloc(c->size)};
    assert(left->bytes);
    memcpy(left->bytes, c->bytes, c->size);
    for (uint32_t i = 0; i < c->setup.nr_layers; i++) {
        const struct recording *r = &c->recordings[i];
        if (c->states[i]) {
            left->states[i] = malloc(c->size);
            assert(left->states[i]);
            memcpy(left->states[i], c->states[i], c->size);
        }
        must(powerloss_random(r, timeline_steps(&c->timeline, r, nr_moments), seed * 31 + i, &left->files[i]));
        fault_init(&left->faults[i]);
    }
}

/* ---- judging ---- */

/* How many layers the disk that begins at first has; what was flattened needs no others. */
static uint32_t count_layers(const struct merge_chain *c, const struct opened *o, uint32_t first)
{
    return o->layers[first].img && !image_has_parent(o->layers[first].img) ? 1 : c->setup.nr_layers - first;
}

static const char *judge_links(const struct opened *o, uint32_t first, uint32_t nr)
{
    for (uint32_t i = first; i + 1 < first + nr; i++) {
        guid linkage, linkage2;
        locator_linkage(o->layers[i].img->locator, &linkage, &linkage2);
        if (!linkage_accepts(&linkage, &linkage2, &o->layers[i + 1].img->header.data_write_guid))
            return "a link does not fit";
    }
    return NULL;
}

static const char *judge_content(const struct merge_chain *c, struct opened *o, uint32_t first, const uint8_t *bytes)
{
    struct vhdx_disk disk = {.layers = o->layers + first, .nr_layers = count_layers(c, o, first), .size = c->size};
    static _Thread_local char text[100];
    uint8_t *found = malloc(c->size);
    const char *problem = NULL;

    assert(found);
    if (disk_pread(&disk, found, c->size, 0) < 0)
        problem = error_message();
    for (uint64_t at = 0; !problem && at < c->size; at += 512) {
        if (memcmp(found + at, bytes + at, 512) != 0) {
            snprintf(text, sizeof text, "other content at 0x%llx", (unsigned long long)at);
            problem = text;
        }
    }
    free(found);
    return problem;
}

const char *merge_chain_judge(struct merge_chain *c, uint32_t first)
{
    struct opened o;
    const char *problem = open_layers(c, &o, TO_READ) < 0 ? error_message() : judge_links(&o, first, count_layers(c, &o, first));

    if (!problem)
        problem = judge_content(c, &o, first, c->bytes);
    for (uint32_t i = 1; !problem && i < c->setup.into; i++) {
        guid before = identity_of_layer(i); /* who still has it must show what it did */
        if (count_layers(c, &o, 0) > 1 && guid_equal(&o.layers[i].img->header.data_write_guid, &before))
            problem = judge_content(c, &o, i, c->states[i]);
    }
    close_layers(c, &o);
    return problem;
}

const char *merge_chain_judge_merged(struct merge_chain *c)
{
    struct opened o;
    const char *problem = open_layers(c, &o, TO_READ) < 0 ? error_message() : NULL;
    guid uppermost = identity_of_layer(0);

    if (!problem) {
        const struct image *target = o.layers[c->setup.into].img;
        if (!guid_equal(&target->header.data_write_guid, &uppermost))
            problem = "the target has not the identity of the uppermost image";
        else if (target->overlay || o.layers[c->setup.into - 1].img->overlay)
            problem = "a log is dirty";
    }
    if (!problem)
        problem = judge_content(c, &o, c->setup.into, c->bytes);
    close_layers(c, &o);
    return problem;
}

const char *merge_chain_judge_flat(struct merge_chain *c)
{
    struct opened o;
    const char *problem = open_layers(c, &o, TO_READ) < 0 ? error_message() : NULL;
    guid mine = identity_of_layer(0);

    if (!problem) {
        const struct image *img = o.layers[0].img;
        if (image_has_parent(img))
            problem = "it still has a parent";
        else if (!guid_equal(&img->header.data_write_guid, &mine))
            problem = "it has another identity";
        else if (img->overlay)
            problem = "its log is dirty";
    }
    if (!problem)
        problem = judge_content(c, &o, 0, c->bytes);
    close_layers(c, &o);
    return problem;
}
