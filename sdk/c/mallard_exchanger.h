/* What a Mallard exchanger in C needs; docs/exchanger-abi.md says what it means.
 *
 *   clang --target=wasm32 -O2 -nostdlib -mbulk-memory -Wl,--no-entry -o hash.wasm hash.c
 */
#ifndef MALLARD_EXCHANGER_H
#define MALLARD_EXCHANGER_H

#include <stddef.h>
#include <stdint.h>

struct ArrowSchema {
    const char *format, *name, *metadata;
    int64_t flags, n_children;
    struct ArrowSchema **children, *dictionary;
    void (*release)(struct ArrowSchema *);
    void *private_data;
};

struct ArrowArray {
    int64_t length, null_count, offset, n_buffers, n_children;
    const void **buffers;
    struct ArrowArray **children, *dictionary;
    void (*release)(struct ArrowArray *);
    void *private_data;
};

#define ARROW_FLAG_NULLABLE 2

_Static_assert(sizeof(struct ArrowSchema) == 48 && sizeof(struct ArrowArray) == 64, "compile for wasm32");

enum { MALLARD_ERROR = -1, MALLARD_NOTHING = 0, MALLARD_OK = 0, MALLARD_ROWS = 1 };

#define MALLARD_EXPORT(name) __attribute__((export_name(#name))) name

/* What an exchanger has to write. */
int32_t mallard_open(struct ArrowSchema *input, const char *params, int32_t length, struct ArrowSchema *output);
int32_t mallard_batch(struct ArrowArray *input, struct ArrowArray *output);

int32_t MALLARD_EXPORT(mallard_abi_version)(void) { return 1; }

static const char *mallard_message;

const char *MALLARD_EXPORT(mallard_error)(void) { return mallard_message; }

static inline int32_t mallard_fail(const char *message) {
    mallard_message = message;
    return MALLARD_ERROR;
}

/* Memory that is never given back: enough where each piece is kept and used again. */
extern unsigned char __heap_base;

static inline void *mallard_take(size_t size) {
    static uintptr_t next;
    uintptr_t start = ((next ? next : (uintptr_t)&__heap_base) + 63) & ~(uintptr_t)63, end = start + size;
    size_t pages = __builtin_wasm_memory_size(0);
    if (end < start) return NULL;
    if (end > pages * 65536 && __builtin_wasm_memory_grow(0, (end - pages * 65536 + 65535) / 65536) == (size_t)-1) {
        return NULL;
    }
    next = end;
    return (void *)start;
}

void *MALLARD_EXPORT(mallard_alloc)(size_t size) { return mallard_take(size); }

/* Room for `size` bytes that a later call with the same slot uses again. */
struct mallard_slot {
    void *bytes;
    size_t size;
};

static inline void *mallard_room(struct mallard_slot *slot, size_t size) {
    if (size > slot->size) {
        slot->size = size + size / 2;
        slot->bytes = mallard_take(slot->size);
    }
    return slot->bytes;
}

static inline int mallard_is_null(const struct ArrowArray *column, int64_t row) {
    const uint8_t *validity = column->buffers[0];
    return validity && !(validity[row / 8] >> (row % 8) & 1);
}

#endif
