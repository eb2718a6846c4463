/* Appends a UBIGINT column `hash`: FNV-1a of the first text column, NULL where that is. Good for cutting a stream into
 * shards, and an example of an exchanger in C.
 *
 *   clang --target=wasm32 -O2 -nostdlib -mbulk-memory -Wl,--no-entry -o hash.wasm hash.c
 */
#include "mallard_exchanger.h"

enum { MAX_COLUMNS = 256 };

static int64_t columns;   /* of the input */
static int64_t text = -1; /* which of them is hashed */

int32_t MALLARD_EXPORT(mallard_open)(struct ArrowSchema *input, const char *params, int32_t length,
                                     struct ArrowSchema *output) {
    static struct ArrowSchema hash = {.format = "L", .name = "hash", .flags = ARROW_FLAG_NULLABLE};
    static struct ArrowSchema *children[MAX_COLUMNS + 1];
    columns = input->n_children;
    if (columns > MAX_COLUMNS) return mallard_fail("the input has more than 256 columns");
    for (int64_t i = 0; i < columns; i++) {
        const char *format = input->children[i]->format;
        if (text < 0 && format[0] == 'u' && format[1] == 0) text = i;
        children[i] = input->children[i]; /* as it is */
    }
    if (text < 0) return mallard_fail("the input has no text column");
    children[columns] = &hash;
    output->format = "+s";
    output->n_children = columns + 1;
    output->children = children;
    return MALLARD_OK;
}

/* The other columns are passed on and never copied. */
int32_t MALLARD_EXPORT(mallard_reads)(int32_t column) { return column == text; }

int32_t MALLARD_EXPORT(mallard_batch)(struct ArrowArray *input, struct ArrowArray *output) {
    static struct mallard_slot slot;
    static const void *buffers[2], *no_nulls[1];
    static struct ArrowArray hash, *children[MAX_COLUMNS + 1];
    const struct ArrowArray *texts = input->children[text];
    const int32_t *offsets = texts->buffers[1];
    const uint8_t *bytes = texts->buffers[2];
    uint64_t *values = mallard_room(&slot, input->length * sizeof *values);
    if (!values) return mallard_fail("there is no memory for the hashes");
    for (int64_t row = 0; row < input->length; row++) {
        uint64_t value = 14695981039346656037u;
        for (int32_t at = offsets[row]; at < offsets[row + 1]; at++) value = (value ^ bytes[at]) * 1099511628211u;
        values[row] = value;
    }
    buffers[0] = texts->buffers[0]; /* NULL where the text is */
    buffers[1] = values;
    hash = (struct ArrowArray){.length = input->length, .null_count = -1, .n_buffers = 2, .buffers = buffers};
    for (int64_t i = 0; i < columns; i++) children[i] = input->children[i];
    children[columns] = &hash;
    *output = (struct ArrowArray){.length = input->length, .n_buffers = 1, .buffers = no_nulls,
                                  .n_children = columns + 1, .children = children};
    return MALLARD_ROWS;
}
