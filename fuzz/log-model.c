/* SPDX-License-Identifier: MIT */
#include "log-model.h"

#include <string.h>

#include "base/crc32c.h"
#include "base/le.h"
#include "format/log-entry.h"
#include "vhdx.h"

enum { SECTOR = LOG_SECTOR_BYTES };

static uint64_t place(const struct log_model *m, uint64_t log_offset)
{
    return m->header.log_offset + log_offset % m->header.log_length;
}

static uint32_t descriptor_sectors(uint32_t nr_descriptors)
{
    return (uint32_t)((64 + 32 * (uint64_t)nr_descriptors + SECTOR - 1) / SECTOR);
}

/* E8 to E10: count what the descriptors ask for, then look at each data sector. */
static bool body_is_valid(struct log_model *m, const struct model_entry *e)
{
    uint32_t nr_sectors = descriptor_sectors(e->nr_descriptors), nr_data = 0;
    uint8_t sector[SECTOR];

    for (uint32_t i = 0; i < e->nr_descriptors; i++) {
        uint64_t at = 64 + 32 * (uint64_t)i;
        if (i == 0 || at % SECTOR == 0)
            fuzz_file_get(m->file, place(m, e->log_offset + at / SECTOR * SECTOR), sector, SECTOR);
        const uint8_t *d = sector + at % SECTOR;
        bool data = memcmp(d, "desc", 4) == 0;
        if ((!data && memcmp(d, "zero", 4) != 0) || le64_get(d + 24) != e->sequence_no)
            return false;
        nr_data += data;
    }
    if (((uint64_t)nr_sectors + nr_data) * SECTOR != e->length)
        return false;
    for (uint32_t i = 0; i < nr_data; i++) {
        fuzz_file_get(m->file, place(m, e->log_offset + ((uint64_t)nr_sectors + i) * SECTOR), sector, SECTOR);
        if (memcmp(sector, "data", 4) != 0 || le32_get(sector + 4) != e->sequence_no >> 32 ||
            le32_get(sector + SECTOR - 4) != (uint32_t)e->sequence_no)
            return false;
    }
    return true;
}

/* E7 */
static bool checksum_is_valid(struct log_model *m, const struct model_entry *e)
{
    uint32_t running = (uint32_t)CRC32C_START, stored = 0;
    uint8_t sector[SECTOR];

    for (uint32_t at = 0; at < e->length; at += SECTOR) {
        fuzz_file_get(m->file, place(m, e->log_offset + at), sector, SECTOR);
        if (at == 0) {
            stored = le32_get(sector + 4);
            memset(sector + 4, 0, 4);
        }
        running = crc32c_feed(running, sector, SECTOR);
    }
    return crc32c_end(running) == stored;
}

static void judge_sector(struct log_model *m, uint32_t log_offset)
{
    uint8_t raw[SECTOR];

    fuzz_file_get(m->file, place(m, log_offset), raw, sizeof raw);
    struct model_entry e = {
        .log_offset = log_offset,
        .length = le32_get(raw + 8),
        .tail = le32_get(raw + 12),
        .sequence_no = le64_get(raw + 16),
        .nr_descriptors = le32_get(raw + 24),
        .flushed_file_offset = le64_get(raw + 48),
        .last_file_offset = le64_get(raw + 56),
    };
    if (memcmp(raw, "loge", 4) != 0 || memcmp(raw + 32, m->header.log_guid.bytes, 16) != 0 || e.length == 0 ||
        e.length % SECTOR != 0 || e.length > m->header.log_length || e.tail % SECTOR != 0 ||
        e.tail >= m->header.log_length || e.sequence_no == 0 ||
        64 + 32 * (uint64_t)e.nr_descriptors > e.length)
        return;
    m->work += e.length;
    if (!body_is_valid(m, &e) || !checksum_is_valid(m, &e))
        return;
    if (m->nr_entries == MODEL_ENTRIES)
        m->given_up = true;
    else
        m->entries[m->nr_entries++] = e;
}

/* The entry that starts at log_offset, -1 if none does. */
static int entry_at(const struct log_model *m, uint32_t log_offset)
{
    for (unsigned i = 0; i < m->nr_entries; i++) {
        if (m->entries[i].log_offset == log_offset)
            return (int)i;
    }
    return -1;
}

static int follower(const struct log_model *m, unsigned i)
{
    const struct model_entry *e = &m->entries[i];
    int f = entry_at(m, (uint32_t)((e->log_offset + (uint64_t)e->length) % m->header.log_length));

    return f >= 0 && e->sequence_no != UINT64_MAX && m->entries[f].sequence_no == e->sequence_no + 1 ? f : -1;
}

/* The entries from head's Tail to head into sequence, if they make one. */
static unsigned collect(const struct log_model *m, unsigned head, unsigned sequence[MODEL_ENTRIES])
{
    uint64_t bytes = 0;
    unsigned nr = 0;

    if (follower(m, head) >= 0)
        return 0;
    for (int i = entry_at(m, m->entries[head].tail); i >= 0; i = follower(m, (unsigned)i)) {
        bytes += m->entries[i].length;
        sequence[nr++] = (unsigned)i;
        if (bytes > m->header.log_length)
            return 0;
        if ((unsigned)i == head)
            return nr;
    }
    return 0;
}

/* 4.6.2 */
static bool find_sequence(struct log_model *m)
{
    unsigned sequence[MODEL_ENTRIES];
    bool tie = false;

    for (unsigned head = 0; head < m->nr_entries; head++) {
        unsigned nr = collect(m, head, sequence);
        if (nr == 0)
            continue;
        uint64_t best = m->nr_sequence > 0 ? m->entries[m->sequence[m->nr_sequence - 1]].sequence_no : 0;
        if (m->entries[head].sequence_no == best)
            tie = true;
        if (m->entries[head].sequence_no <= best)
            continue;
        tie = false;
        m->nr_sequence = nr;
        memcpy(m->sequence, sequence, nr * sizeof *sequence);
    }
    return m->nr_sequence > 0 && !tie;
}

/* 4.7 steps 3 and 4 for one descriptor. */
static bool step_is_legal(const struct log_model *m, const struct model_step *s, uint64_t bound)
{
    uint64_t log_end = m->header.log_offset + m->header.log_length, end = s->file_offset + s->length;

    if (s->file_offset % SECTOR != 0 || s->length % SECTOR != 0 || end < s->file_offset || end > bound)
        return false;
    return s->length == 0 ||
           (s->file_offset >= 0x30000 && (end <= m->header.log_offset || s->file_offset >= log_end));
}

static bool take_steps(struct log_model *m, const struct model_entry *e, uint64_t bound)
{
    uint32_t nr_sectors = descriptor_sectors(e->nr_descriptors), nr_data = 0;
    uint8_t d[32];

    for (uint32_t i = 0; i < e->nr_descriptors; i++) {
        uint64_t descriptor = place(m, e->log_offset + 64 + 32 * (uint64_t)i);
        fuzz_file_get(m->file, descriptor, d, sizeof d);
        struct model_step s = {
            .file_offset = le64_get(d + 16), .zero = d[0] == 'z', .descriptor = descriptor};
        s.length = s.zero ? le64_get(d + 8) : SECTOR;
        if (!s.zero)
            s.data_sector = place(m, e->log_offset + ((uint64_t)nr_sectors + nr_data++) * SECTOR);
        if (!step_is_legal(m, &s, bound))
            return false;
        if (m->nr_steps == MODEL_STEPS)
            m->given_up = true;
        else if (s.length > 0)
            m->steps[m->nr_steps++] = s;
    }
    return true;
}

static int judge(struct log_model *m)
{
    if (!find_sequence(m))
        return VHDX_E_LOG;
    const struct model_entry *head = &m->entries[m->sequence[m->nr_sequence - 1]];
    if (m->file->length < head->flushed_file_offset)
        return VHDX_E_TRUNCATED;
    uint64_t bound = m->file->length;
    for (unsigned i = 0; i < m->nr_sequence; i++) {
        uint64_t last = m->entries[m->sequence[i]].last_file_offset;
        if (last > MAX_FILE_BYTES)
            return VHDX_E_LOG;
        bound = max_u64(bound, last);
    }
    for (unsigned i = 0; i < m->nr_sequence; i++) {
        if (!take_steps(m, &m->entries[m->sequence[i]], bound))
            return VHDX_E_LOG;
    }
    m->file_length = max_u64(m->file->length, head->last_file_offset);
    return 0;
}

void log_model_build(struct log_model *m, const struct fuzz_file *file, const struct header *header)
{
    m->file = file;
    m->header = *header;
    m->given_up = false;
    m->work = 0;
    m->nr_entries = m->nr_sequence = m->nr_steps = 0;
    for (unsigned i = fuzz_file_find(file, header->log_offset / PAGE_BYTES); i < file->nr_pages; i++) {
        uint64_t offset = file->page_no[i] * PAGE_BYTES;
        if (offset >= header->log_offset + header->log_length)
            break;
        judge_sector(m, (uint32_t)(offset - header->log_offset));
    }
    m->verdict = judge(m);
}

/* The last step that touches the page, NULL if none does. */
static const struct model_step *last_step_on(const struct log_model *m, uint64_t page_no)
{
    uint64_t offset = page_no * PAGE_BYTES;

    for (unsigned i = m->nr_steps; i-- > 0;) {
        if (offset >= m->steps[i].file_offset && offset - m->steps[i].file_offset < m->steps[i].length)
            return &m->steps[i];
    }
    return NULL;
}

bool log_model_changes(const struct log_model *m, uint64_t page_no)
{
    return last_step_on(m, page_no) != NULL;
}

void log_model_page(const struct log_model *m, uint64_t page_no, uint8_t page[PAGE_BYTES])
{
    const struct model_step *s = last_step_on(m, page_no);
    uint64_t offset = page_no * PAGE_BYTES;
    uint8_t d[32];

    if (!s) {
        fuzz_file_get(m->file, offset, page, PAGE_BYTES);
    } else if (s->zero) {
        memset(page, 0, PAGE_BYTES);
    } else {
        fuzz_file_get(m->file, s->data_sector, page, PAGE_BYTES);
        fuzz_file_get(m->file, s->descriptor, d, sizeof d);
        memcpy(page, d + 8, 8);
        memcpy(page + PAGE_BYTES - 4, d + 4, 4);
    }
    if (offset + PAGE_BYTES > m->file_length) {
        uint64_t there = m->file_length - min_u64(offset, m->file_length);
        memset(page + there, 0, PAGE_BYTES - there);
    }
}
