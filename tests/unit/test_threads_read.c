/* SPDX-License-Identifier: MIT */
/* One handle, 16 threads (contracts C1 and C6): every read and map must be as chain-model.c says, whoever
 * makes it when. ThreadSanitizer runs this too. */
#include "image-test.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "chain-model.h"
#include "scratch.h"

enum { NR_THREADS = 16 };

/* What the threads do it to: the disk layer itself, or the library as programs use it. */
struct target {
    const struct chain_model *m;
    vhdx_disk *handle; /* NULL: m->disk, without the public calls */
    unsigned nr_rounds;
    atomic_uint nr_errors;
};

struct worker {
    struct target *t;
    pthread_barrier_t *start;
    unsigned no;
};

static void complain(struct target *t, const char *what, uint64_t guest_offset)
{
    if (t->nr_errors++ == 0)
        fprintf(stderr, "%s at %llu\n", what, (unsigned long long)guest_offset);
}

static void read_some(struct target *t, uint64_t guest_offset, size_t count, uint8_t *buf)
{
    int r = t->handle ? vhdx_pread(t->handle, buf, count, guest_offset)
                      : disk_pread(t->m->disk, buf, count, guest_offset);

    if (r != 0)
        complain(t, "error", guest_offset);
    else if (memcmp(buf, t->m->bytes + guest_offset, count) != 0)
        complain(t, "wrong bytes", guest_offset);
}

/* The extents' sum and the first one's owner; test_disk_extents.c looks closer. */
static int add_extent(void *opaque, const struct vhdx_extent *e)
{
    *(uint64_t *)opaque += e->length;
    return 0;
}

static void map_some(struct target *t, uint64_t guest_offset, uint64_t length)
{
    uint64_t sum = 0;
    int r = t->handle ? vhdx_map(t->handle, guest_offset, length, add_extent, &sum)
                      : disk_map(t->m->disk, guest_offset, length, add_extent, &sum);

    if (r != 0 || sum != length)
        complain(t, "wrong map", guest_offset);
}

/* Each thread has the message of its own failure. */
static void fail_some(struct target *t, unsigned no)
{
    char expected[64], buf[1];
    uint64_t beyond = t->m->size + no;
    int r = t->handle ? vhdx_pread(t->handle, buf, 1, beyond) : disk_pread(t->m->disk, buf, 1, beyond);
    const char *message = t->handle ? vhdx_error_message() : error_message();

    snprintf(expected, sizeof expected, "1 bytes at %llu ", (unsigned long long)beyond);
    if (r != -EINVAL || strncmp(message, expected, strlen(expected)) != 0)
        complain(t, "wrong message", beyond);
}

static void *work(void *opaque)
{
    struct worker *w = opaque;
    uint64_t random = 0xbeef + w->no, size = w->t->m->size;
    uint8_t *buf = malloc(size);

    pthread_barrier_wait(w->start);
    for (unsigned i = 0; buf && i < w->t->nr_rounds; i++) {
        uint64_t at = random_next(&random) % size;
        uint64_t count = random_next(&random) % min_u64(size - at, i % 16 ? 5000 : 200000) + 1;
        read_some(w->t, at, count, buf);
        if (i % 8 == 0)
            map_some(w->t, at, count);
        if (i % 32 == 0)
            fail_some(w->t, w->no);
    }
    free(buf);
    return NULL;
}

static void hammer(struct target *t)
{
    pthread_t threads[NR_THREADS];
    struct worker workers[NR_THREADS];
    pthread_barrier_t start;

    pthread_barrier_init(&start, NULL, NR_THREADS);
    for (unsigned i = 0; i < NR_THREADS; i++) {
        workers[i] = (struct worker){.t = t, .start = &start, .no = i};
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (unsigned i = 0; i < NR_THREADS; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&start);
    assert_int_equal(t->nr_errors, 0);
}

static void many_threads_read_a_chain_in_memory(void **state)
{
    uint64_t random = 0x7412ead;

    (void)state;
    for (unsigned no = 0; no < 3; no++) {
        struct chain_model m;
        const struct chain_model_options o = {
            .nr_layers = 1 + no * 4, .sector_size = 512, .max_bytes = MIB(4)};
        chain_model_make(&m, &o, &random);
        struct target t = {.m = &m, .nr_rounds = 150};
        hammer(&t);
        disk_close(m.disk);
        chain_model_free(&m);
    }
}

/* Write layer n of the chain into a file, as the parent that chain-model.c's locators ask for. */
static void put_into_file(const struct chain_model *m, uint32_t n, const char *path)
{
    struct storage *to;
    uint8_t raw[HEADER_RAW_BYTES];
    struct header h;
    int fd = open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0666);

    assert_true(fd >= 0);
    assert_succeeds(storage_posix_from_fd(fd, true, false, &to));
    assert_succeeds(double_copy(m->files[n], to));
    assert_succeeds(storage_pread(to, raw, sizeof raw, HEADER_OFFSET(1)));
    header_decode(raw, &h);
    if (n > 0)
        assert_int_equal(guid_parse("{f88d4d92-6fcc-408d-9bef-9b7c89f15c89}", &h.data_write_guid), 0);
    build_header(to, 1, &h);
    storage_close(to);
}

static void many_threads_read_files_through_the_library(void **state)
{
    uint64_t random = 0x7412eae;
    char folder[SCRATCH_PATH_BYTES], child[SCRATCH_PATH_BYTES + 16], parent[SCRATCH_PATH_BYTES + 16];
    struct chain_model m;
    const struct chain_model_options o = {.nr_layers = 2, .sector_size = 512, .max_bytes = MIB(4)};

    (void)state;
    scratch_make(folder);
    snprintf(child, sizeof child, "%s/child.vhdx", folder);
    snprintf(parent, sizeof parent, "%s/parent.vhdx", folder);
    chain_model_make(&m, &o, &random);
    put_into_file(&m, 0, child);
    put_into_file(&m, 1, parent);
    struct target t = {.m = &m, .nr_rounds = 300};
    int r = vhdx_open(child, NULL, &t.handle);
    if (r != 0)
        print_error("%s\n", vhdx_error_message());
    assert_int_equal(r, 0);
    assert_int_equal(vhdx_chain_length(t.handle), 2);
    hammer(&t);
    vhdx_close(t.handle);
    disk_close(m.disk);
    chain_model_free(&m);
    scratch_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_threads_read_a_chain_in_memory),
        cmocka_unit_test(many_threads_read_files_through_the_library),
    };

    return cmocka_run_group_tests(tests, init_test_fault, NULL);
}
