/* SPDX-License-Identifier: MIT */
/* Storage test doubles: each puts itself before another storage.  fault.c makes operations fail, recorder.c
 * writes down what changes the file, powerloss.c builds from that what could be on the disk after a power
 * cut.  What exactly each models stands at the head of its file.
 *
 * Ownership is the same everywhere: the storage that a *_wrap() call makes belongs to who made it (or to the
 * image that took it over) and may be closed at any time.  The wrapped storage and the controlling struct
 * stay the caller's, must live longer, and so can be looked at after the image is gone.  One controlling
 * struct may serve several wrappers, for example all openings of one file, one after the other.
 *
 * Wrappers have the identity of what they wrap, but no fd: nothing goes past them.  Several threads may use
 * one. */
#ifndef VHDX_TESTS_DOUBLES_H
#define VHDX_TESTS_DOUBLES_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage/storage.h"

/* ---- fault.c ---- */

enum fault_kind {
    FAULT_READ,
    FAULT_WRITE,
    FAULT_FLUSH,
    FAULT_LENGTH,
    FAULT_TRUNCATE,
    FAULT_PUNCH,
    FAULT_RESERVE,
    FAULT_ZERO,
    FAULT_NEXT_DATA,
    FAULT_USAGE,
    FAULT_LOCK,
    FAULT_ANY, /* all of the above */
    NR_FAULT_KINDS,
};

struct fault_plan {
    enum fault_kind kind;
    uint64_t nth;      /* which operation of the kind, 1 is the first after fault_arm(); 0: none */
    bool forever;      /* all later ones of the kind as well */
    int error;         /* what it returns, negative; 0, FAULT_READ only: a success that finds the end early */
    size_t bytes_done; /* first bytes of a failing write that are written, of a short read that exist */
};

struct fault {
    pthread_mutex_t mutex; /* guards all below */
    struct fault_plan plan;
    uint64_t counts[NR_FAULT_KINDS]; /* operations since fault_arm() */
    uint64_t nr_injected;
    uint64_t write_offset; /* of the last write that failed */
};

void fault_init(struct fault *f);
void fault_destroy(struct fault *f);

/* Start counting anew with this plan; NULL: count only. */
void fault_arm(struct fault *f, const struct fault_plan *plan);

/* Operations of the kind, failed ones included, and faults that happened, since fault_arm(). */
uint64_t fault_count(struct fault *f, enum fault_kind kind);
uint64_t fault_injected(struct fault *f);

int fault_wrap(struct fault *f, struct storage *inner, struct storage **s);

/* ---- recorder.c ---- */

enum step_kind { STEP_WRITE, STEP_TRUNCATE, STEP_PUNCH, STEP_ZERO, STEP_FLUSH };

struct step {
    enum step_kind kind;
    uint64_t offset; /* bytes; STEP_TRUNCATE: the new length */
    uint64_t bytes;  /* STEP_WRITE, STEP_PUNCH, STEP_ZERO */
    uint8_t *data;   /* STEP_WRITE */
    size_t covers;   /* STEP_FLUSH: so many first steps had returned when it began and are durable now */
};

struct timeline;

struct recording {
    struct timeline *timeline; /* NULL: nobody asks what happened to other files meanwhile */
    pthread_mutex_t mutex; /* guards all below */
    struct storage *base;  /* in memory: what the file held before the first step, all of it durable */
    struct step *steps;
    size_t nr_steps, room;
};

/* Begin with what content holds now (NULL: an empty file), which is copied. */
int recording_init(struct recording *r, struct storage *content);
void recording_destroy(struct recording *r);

/* Put a recorder before inner, whose content must be that of the recording. */
int recorder_wrap(struct recording *r, struct storage *inner, struct storage **s);

/* Steps so far: kept by a test next to what it did, it says what had completed at which step. */
size_t recording_nr_steps(struct recording *r);

/* As if the last nr_last steps had never been asked for.  Nothing may be recorded meanwhile. */
void recording_forget(struct recording *r, size_t nr_last);

/* A new file in memory as it was after the first nr_steps steps; and the same from one such point to a later
 * one.  Nothing may be recorded meanwhile. */
int recording_replay(const struct recording *r, size_t nr_steps, struct storage **s);
int recording_apply(const struct recording *r, size_t first, size_t end, struct storage *to);

/* Do one step to another storage; a flush does nothing. */
int step_apply(const struct step *step, struct storage *to);

/* Copy content and length of from to the empty file to; holes stay holes. */
int double_copy(struct storage *from, struct storage *to);

/* What happened to several files, in one order: for each moment which recording got another step. */
struct timeline {
    pthread_mutex_t mutex; /* guards all below */
    struct recording **moments;
    size_t nr_moments, room;
};

void timeline_init(struct timeline *t);
void timeline_destroy(struct timeline *t);

/* Take part, before the first step. */
void timeline_add(struct timeline *t, struct recording *r);

/* How many steps r had after the first nr_moments moments. */
size_t timeline_steps(const struct timeline *t, const struct recording *r, size_t nr_moments);

/* ---- powerloss.c ---- */

/* The first so many of nr_steps steps are durable if the power fails right after them. */
size_t powerloss_durable(const struct recording *r, size_t nr_steps);

/* One file, in memory, that could be found after power fails after nr_steps steps.  The same seed gives the
 * same. */
int powerloss_random(const struct recording *r, size_t nr_steps, uint64_t seed, struct storage **s);

/* The same without the replay: to holds what is durable after nr_steps steps, and gets what becomes of the others. */
int powerloss_suffer(const struct recording *r, size_t nr_steps, uint64_t seed, struct storage *to);

enum powerloss_unit {
    POWERLOSS_STEPS, /* each step is there or not */
    POWERLOSS_4KIB,  /* each aligned 4 KiB of a step is there or not */
};

/* One state; s is the callee's to close.  Return 0 to go on; anything else ends the enumeration, which
 * returns it. */
typedef int powerloss_fn(void *opaque, uint64_t state_no, struct storage *s);

/* Call fn for every state that power loss after nr_steps steps can leave in these units, with states numbered
 * from 0 (all that is not durable is gone) to the last (all is there).  -E2BIG, without any call, if there
 * are more than max_states. */
int powerloss_enumerate(const struct recording *r, size_t nr_steps, enum powerloss_unit unit,
                        uint64_t max_states, powerloss_fn *fn, void *opaque);

/* The same piece by piece: how many states there are, 0 if more than max_states; and one of them, made in to, which holds what
 * is durable. */
uint64_t powerloss_count(const struct recording *r, size_t nr_steps, enum powerloss_unit unit, uint64_t max_states);
int powerloss_subset(const struct recording *r, size_t nr_steps, enum powerloss_unit unit, uint64_t state_no,
                     struct storage *to);

#endif
