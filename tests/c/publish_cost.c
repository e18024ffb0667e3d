/* publish_cost.c: publish N frames of 64 bytes with nobody admitted, to count
 * what one costs: the difference of two runs, divided by that of their N.
 *
 *   valgrind --tool=callgrind --callgrind-out-file=/dev/null publish_cost DIRECTORY N
 */
#include "support.h"

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    const block_files files = block_find_files(argv[1]);
    const uint64_t n_frames = strtoull(argv[2], NULL, 10);
    phb_datablock db;
    phb_segment segment;
    phb_update update;
    block_create(&db, &segment, &files, 4, 64, 64);
    memset(&update, 0, sizeof update);
    update.zones = PHB_ZONE_STRUCTURED;
    update.structured_size = 64;
    update.timestamp_ns = 1;
    for (uint64_t i = 0; i < n_frames; i++) {
        CHECK(phb_datablock_try_begin(&db) == PHB_OK);
        CHECK(phb_datablock_data(&db) != NULL);
        CHECK(phb_datablock_end(&db, &update, NULL) == PHB_OK);
    }
    phb_datablock_close(&db, &segment, files.segment);
    phb_datablock_detach(&db, &segment);
    return 0;
}
