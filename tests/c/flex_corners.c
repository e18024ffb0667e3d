/* flex_corners.c: phb_flex_check over every first byte, short and long, with
 * limits from nothing to everything.
 *
 *   flex_corners MAX_DEPTH...
 *
 * Each object lies at the very end of its allocation: compile with
 * -fsanitize=address,undefined, and a byte read beyond it is an error.
 */
#include <pyhub/flex.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned long long n_whole = 0, n_beyond = 0, n_no_text = 0, n_no_object = 0;

static void check(const unsigned char *object, uint64_t size, uint32_t depth, uint64_t n_items)
{
    unsigned char *copy = (unsigned char *)malloc(size ? size : 1);
    if (!copy) {
        abort();
    }
    memcpy(copy + (size ? 0 : 1), object, size);
    switch (phb_flex_check(copy + (size ? 0 : 1), size, depth, n_items)) {
    case PHB_OK: n_whole++; break;
    case PHB_CAPACITY: n_beyond++; break;
    case PHB_MISUSE: n_no_text++; break; /* a key */
    case PHB_DAMAGED: n_no_object++; break;
    default: abort();
    }
    free(copy);
}

int main(int argc, char **argv)
{
    static const uint64_t n_items[] = {0, 1, 1000, UINT64_MAX};
    static const unsigned char tails[] = {0x00, 0x01, 0x7f, 0x80, 0x91, 0xa1, 0xc0, 0xdf, 0xff};
    for (int d = 1; d < argc; d++) {
        const uint32_t depth = (uint32_t)strtoul(argv[d], NULL, 10);
        for (unsigned n = 0; n < sizeof n_items / sizeof *n_items; n++) {
            for (unsigned first = 0; first < 256; first++) {
                for (unsigned t = 0; t < sizeof tails; t++) {
                    unsigned char object[300];
                    memset(object, tails[t], sizeof object);
                    object[0] = (unsigned char)first;
                    for (unsigned size = 0; size < 20; size++) {
                        check(object, size, depth, n_items[n]);
                    }
                    check(object, sizeof object, depth, n_items[n]);
                }
            }
        }
    }
    printf("whole %llu\nbeyond %llu\nno_text %llu\nno_object %llu\n", n_whole, n_beyond,
           n_no_text, n_no_object);
    return 0;
}
