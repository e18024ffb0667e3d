/* layout_probe.c: name, offset and size of every field that processes share.
 * The golden file of an ABI version holds what this printed when it was made.
 */
#include <pyhub/datablock.h>

#include <stdio.h>

#define CONSTANT(name) printf("%-50s %20llu\n", #name, (unsigned long long)(name))
#define STRUCT(type) printf("%-50s %13s %6zu\n", #type, "", sizeof(type))
#define FIELD(type, field)                                                  \
    printf("  %-48s %13zu %6zu\n", #type "." #field, offsetof(type, field), \
           sizeof(((type *)0)->field))

int main(void)
{
    CONSTANT(PHB_ABI_VERSION);
    CONSTANT(PHB_MAGIC);
    CONSTANT(PHB_BYTE_ORDER);
    CONSTANT(PHB_KIND_DATABLOCK);
    CONSTANT(PHB_KIND_READERS);
    CONSTANT(PHB_MAX_GUESTS);
    CONSTANT(PHB_CACHE_LINE);
    CONSTANT(PHB_ZONE_ALIGN);
    CONSTANT(PHB_NAME_BYTES);
    CONSTANT(PHB_READER_NAME_BYTES);
    CONSTANT(PHB_READER_PINS);
    CONSTANT(PHB_MAX_READERS);
    CONSTANT(PHB_POLICY_LATEST);
    CONSTANT(PHB_POLICY_EVERY);
    CONSTANT(PHB_POLICY_BLOCK);
    CONSTANT(PHB_POLICY_DROP_NEWEST);
    CONSTANT(PHB_POLICY_DROP_OLDEST);
    CONSTANT(PHB_GATE_CLOSED);
    CONSTANT(PHB_MAX_NDIM);
    CONSTANT(PHB_DTYPE_BYTES);
    CONSTANT(PHB_MAX_SLOTS);
    CONSTANT(PHB_NO_ENTRY);
    CONSTANT(PHB_ZONE_FLEX);
    CONSTANT(PHB_ZONE_STRUCTURED);
    CONSTANT(PHB_FLEX_MSGPACK);
    CONSTANT(PHB_FLEX_JSON);

    STRUCT(phb_segment_header);
    FIELD(phb_segment_header, magic);
    FIELD(phb_segment_header, abi_version);
    FIELD(phb_segment_header, byte_order);
    FIELD(phb_segment_header, kind);
    FIELD(phb_segment_header, constant_size);
    FIELD(phb_segment_header, checksum);
    FIELD(phb_segment_header, mutex_size);
    FIELD(phb_segment_header, pointer_size);
    FIELD(phb_segment_header, creator_uid);
    FIELD(phb_segment_header, segment_size);
    FIELD(phb_segment_header, pid_namespace);
    FIELD(phb_segment_header, created_ns);
    FIELD(phb_segment_header, creator_pid);
    FIELD(phb_segment_header, reserved0);
    FIELD(phb_segment_header, boot_id);
    FIELD(phb_segment_header, segment_id);
    FIELD(phb_segment_header, name);
    FIELD(phb_segment_header, reserved1);

    STRUCT(phb_segment_live);
    FIELD(phb_segment_live, owner_lease);
    FIELD(phb_segment_live, owner_pid);
    FIELD(phb_segment_live, is_closed);
    FIELD(phb_segment_live, guest_lease);

    STRUCT(phb_readers_constants);
    FIELD(phb_readers_constants, segment);
    FIELD(phb_readers_constants, datablock_id);
    FIELD(phb_readers_constants, patience_ns);
    FIELD(phb_readers_constants, table_offset);
    FIELD(phb_readers_constants, n_places);
    FIELD(phb_readers_constants, reserved0);
    FIELD(phb_readers_constants, reserved1);

    STRUCT(phb_readers_control);
    FIELD(phb_readers_control, lock);
    FIELD(phb_readers_control, gate);
    FIELD(phb_readers_control, reserved0);
    FIELD(phb_readers_control, claiming);
    FIELD(phb_readers_control, is_waiting);
    FIELD(phb_readers_control, reserved1);
    FIELD(phb_readers_control, released);
    FIELD(phb_readers_control, reserved2);
    FIELD(phb_readers_control, awaited);
    FIELD(phb_readers_control, reserved3);

    STRUCT(phb_reader_place);
    FIELD(phb_reader_place, lease);
    FIELD(phb_reader_place, pid);
    FIELD(phb_reader_place, policy);
    FIELD(phb_reader_place, name);
    FIELD(phb_reader_place, reserved0);
    FIELD(phb_reader_place, cursor);
    FIELD(phb_reader_place, n_read);
    FIELD(phb_reader_place, n_lost);
    FIELD(phb_reader_place, max_lag);
    FIELD(phb_reader_place, pin);
    FIELD(phb_reader_place, reserved1);
    FIELD(phb_reader_place, given_up_at);
    FIELD(phb_reader_place, kept_at);
    FIELD(phb_reader_place, kept_ns);
    FIELD(phb_reader_place, stalled_ns);
    FIELD(phb_reader_place, n_dropped);
    FIELD(phb_reader_place, reserved2);

    STRUCT(phb_datablock_constants);
    FIELD(phb_datablock_constants, segment);
    FIELD(phb_datablock_constants, flex_zone_capacity);
    FIELD(phb_datablock_constants, flex_zone_stride);
    FIELD(phb_datablock_constants, flex_zone_offset);
    FIELD(phb_datablock_constants, structured_buffer_capacity);
    FIELD(phb_datablock_constants, structured_buffer_stride);
    FIELD(phb_datablock_constants, structured_buffer_offset);
    FIELD(phb_datablock_constants, control_offset);
    FIELD(phb_datablock_constants, slot_table_offset);
    FIELD(phb_datablock_constants, flex_table_offset);
    FIELD(phb_datablock_constants, itemsize);
    FIELD(phb_datablock_constants, shape);
    FIELD(phb_datablock_constants, ndim);
    FIELD(phb_datablock_constants, n_slots);
    FIELD(phb_datablock_constants, dtype);
    FIELD(phb_datablock_constants, reserved);

    STRUCT(phb_datablock_control);
    FIELD(phb_datablock_control, lock);
    FIELD(phb_datablock_control, is_writing);
    FIELD(phb_datablock_control, writer_pid);
    FIELD(phb_datablock_control, flex_free);
    FIELD(phb_datablock_control, is_awaited);
    FIELD(phb_datablock_control, n_recovered);
    FIELD(phb_datablock_control, n_aborted);
    FIELD(phb_datablock_control, n_dropped);
    FIELD(phb_datablock_control, reserved1);
    FIELD(phb_datablock_control, commit);
    FIELD(phb_datablock_control, reserved2);
    FIELD(phb_datablock_control, record);

    STRUCT(phb_record);
    FIELD(phb_record, flex_zone_size);
    FIELD(phb_record, flex_zone_version);
    FIELD(phb_record, structured_buffer_size);
    FIELD(phb_record, structured_buffer_version);
    FIELD(phb_record, timestamp);
    FIELD(phb_record, newest_slot);
    FIELD(phb_record, n_filled);
    FIELD(phb_record, flex_index);
    FIELD(phb_record, zones);
    FIELD(phb_record, position);
    FIELD(phb_record, n_dropped);
    FIELD(phb_record, reserved);

    STRUCT(phb_slot);
    FIELD(phb_slot, seq);
    FIELD(phb_slot, version);
    FIELD(phb_slot, frame_id);
    FIELD(phb_slot, timestamp_ns);
    FIELD(phb_slot, size);
    FIELD(phb_slot, n_dropped);
    FIELD(phb_slot, flex_version);
    FIELD(phb_slot, flex_index);
    FIELD(phb_slot, published_at);

    STRUCT(phb_flex_entry);
    FIELD(phb_flex_entry, seq);
    FIELD(phb_flex_entry, size);
    FIELD(phb_flex_entry, encoding);
    FIELD(phb_flex_entry, next_free);
    FIELD(phb_flex_entry, n_uses);
    FIELD(phb_flex_entry, reserved0);
    FIELD(phb_flex_entry, published_at);
    FIELD(phb_flex_entry, reserved1);

    /* Where things lie in one DataBlock: 3 slots, odd capacities. */
    phb_datablock_constants c;
    uint64_t total;
    memset(&c, 0, sizeof c);
    c.n_slots = 3;
    c.flex_zone_capacity = 77;
    c.structured_buffer_capacity = 5000;
    if (!phb_datablock_measure(&c, &total)) {
        return 1;
    }
    printf("example: 3 slots of 5000 bytes, flex zone of 77\n");
#define EXAMPLE(field) printf("  %-48s %13llu\n", #field, (unsigned long long)c.field)
    EXAMPLE(control_offset);
    EXAMPLE(slot_table_offset);
    EXAMPLE(flex_table_offset);
    EXAMPLE(flex_zone_stride);
    EXAMPLE(flex_zone_offset);
    EXAMPLE(structured_buffer_stride);
    EXAMPLE(structured_buffer_offset);
    printf("  %-48s %13llu\n", "segment_size", (unsigned long long)total);
    return 0;
}
