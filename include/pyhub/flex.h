/* flex.h: a bounded walk over a MessagePack object, before anybody unpacks it.
 *
 * A small object can describe a huge or bottomless one (five bytes announce an
 * array of four billion). The walk allocates nothing, reads each byte once,
 * and stops at the limits. Format: https://github.com/msgpack/msgpack spec.md.
 */
#ifndef PYHUB_FLEX_H
#define PYHUB_FLEX_H

#include "abi.h"

#define PHB_FLEX_MAX_DEPTH 64u /* the most that phb_flex_check can follow */

/* What one header byte announces: `head` bytes in all, then `body` bytes, then
 * `n_children` objects. False: a byte that starts no object, or no room. */
static inline int phb_flex_head(const unsigned char *at, uint64_t left, uint64_t *head,
                                uint64_t *body, uint64_t *n_children)
{
    /* For 0xc0 to 0xdf: bytes of the length field; what the length counts
     * (0: nothing, 1: bytes, 2: objects, 3: pairs); fixed bytes after it.
     * An ext type has one more byte, its type. 0xc1 is never used. */
    static const struct {
        unsigned char length, counts, fixed;
    } forms[32] = {
        {0, 0, 0}, {9, 0, 0}, {0, 0, 0}, {0, 0, 0},                       /* nil, -, bools */
        {1, 1, 0}, {2, 1, 0}, {4, 1, 0},                                  /* bin */
        {1, 1, 1}, {2, 1, 1}, {4, 1, 1},                                  /* ext */
        {0, 0, 4}, {0, 0, 8},                                             /* floats */
        {0, 0, 1}, {0, 0, 2}, {0, 0, 4}, {0, 0, 8},                       /* unsigned */
        {0, 0, 1}, {0, 0, 2}, {0, 0, 4}, {0, 0, 8},                       /* signed */
        {0, 0, 2}, {0, 0, 3}, {0, 0, 5}, {0, 0, 9}, {0, 0, 17},           /* fixext */
        {1, 1, 0}, {2, 1, 0}, {4, 1, 0},                                  /* str */
        {2, 2, 0}, {4, 2, 0}, {2, 3, 0}, {4, 3, 0},                       /* array, map */
    };
    if (left == 0) {
        return 0;
    }
    const unsigned first = at[0];
    uint64_t length = 0;
    *head = 1;
    *body = *n_children = 0;
    if (first <= 0x7f || first >= 0xe0) { /* small integers */
        return 1;
    }
    if (first <= 0x8f) { /* fixmap */
        *n_children = 2 * (uint64_t)(first & 0x0f);
        return 1;
    }
    if (first <= 0x9f) { /* fixarray */
        *n_children = first & 0x0f;
        return 1;
    }
    if (first <= 0xbf) { /* fixstr */
        *body = first & 0x1f;
        return *body <= left - 1;
    }
    const unsigned n_length = forms[first - 0xc0].length;
    if (n_length == 9 || n_length > left - 1) {
        return 0;
    }
    for (unsigned i = 0; i < n_length; i++) {
        length = length << 8 | at[1 + i];
    }
    *head += n_length;
    *body = forms[first - 0xc0].fixed;
    switch (forms[first - 0xc0].counts) {
    case 1: *body += length; break;
    case 2: *n_children = length; break;
    case 3: *n_children = 2 * length; break;
    default: break;
    }
    return *body <= left - *head;
}

/* PHB_OK: exactly one whole object, at most `max_depth` deep (itself counts
 * as 1) and of at most `max_items` objects in all. PHB_CAPACITY: beyond a
 * limit. PHB_MISUSE: a map's key that is no text. PHB_DAMAGED: not one whole
 * MessagePack object. */
static inline int phb_flex_check(const unsigned char *object, uint64_t size,
                                 uint32_t max_depth, uint64_t max_items)
{
    uint64_t open[PHB_FLEX_MAX_DEPTH]; /* objects still to come on each level */
    uint64_t maps = 0;                 /* bit d: level d is a map; its keys come
                                          when an even number is still to come */
    uint32_t depth = 1;
    uint64_t at = 0, n_items = 0;
    open[0] = 1;
    if (max_depth > PHB_FLEX_MAX_DEPTH) {
        max_depth = PHB_FLEX_MAX_DEPTH;
    }
    while (depth > 0) {
        uint64_t head, body, n_children;
        if (open[depth - 1] == 0) {
            depth--;
            continue;
        }
        const int is_key = (maps >> (depth - 1) & 1) && open[depth - 1] % 2 == 0;
        open[depth - 1]--;
        if (!phb_flex_head(object + at, size - at, &head, &body, &n_children)) {
            return PHB_DAMAGED;
        }
        const unsigned first = object[at];
        at += head + body;
        if (is_key && !((first >= 0xa0 && first <= 0xbf) || (first >= 0xd9 && first <= 0xdb))) {
            return PHB_MISUSE;
        }
        if (++n_items > max_items || n_children > max_items) {
            return PHB_CAPACITY;
        }
        if (n_children > 0) {
            if (depth >= max_depth) {
                return PHB_CAPACITY;
            }
            const uint64_t level = (uint64_t)1 << depth;
            const int is_map = (first & 0xf0) == 0x80 || first == 0xde || first == 0xdf;
            maps = is_map ? maps | level : maps & ~level;
            open[depth++] = n_children;
        }
    }
    return at == size ? PHB_OK : PHB_DAMAGED;
}

#endif
