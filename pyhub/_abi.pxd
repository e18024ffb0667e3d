"""The headers as Cython sees them; include/pyhub says what each line means."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "pyhub/abi.h" nogil:
    const uint32_t PHB_ABI_VERSION
    ctypedef enum phb_status:
        PHB_OK
        PHB_TIMEOUT
        PHB_INTERRUPTED
        PHB_RECOVERED
        PHB_EMPTY
        PHB_BUSY
        PHB_OVERRUN
        PHB_FULL
        PHB_CLOSED
        PHB_CAPACITY
        PHB_MISUSE
        PHB_SYSTEM
        PHB_EXISTS
        PHB_IN_USE
        PHB_NOT_SEGMENT
        PHB_BAD_ABI
        PHB_BAD_KIND
        PHB_BAD_BOOT
        PHB_BAD_PIDNS
        PHB_BAD_OWNER
        PHB_BAD_MODE
        PHB_TRUNCATED
        PHB_DAMAGED

    ctypedef struct phb_u32:
        pass
    ctypedef struct phb_u64:
        pass
    uint32_t phb_load32(const phb_u32 *)
    uint32_t phb_load32_acquire(const phb_u32 *)
    uint64_t phb_load64(const phb_u64 *)
    uint64_t phb_load64_acquire(const phb_u64 *)


cdef extern from "pyhub/sync.h" nogil:
    int64_t phb_monotonic_ns()
    int phb_futex_wait(const uint32_t *, uint32_t seen, int64_t timeout_ns)
    void phb_futex_wake(const uint32_t *)
    const int64_t PHB_SPIN_FOREVER
    ctypedef struct phb_waiting:
        int64_t spin_ns
        phb_u64 *awaited
    int phb_wait_change(const phb_u64 *, uint64_t seen, int64_t deadline_ns,
                        const phb_waiting *)
    void phb_copy_to_shared(void *, const void *, uint64_t size)


cdef extern from "pyhub/lease.h" nogil:
    int phb_lease_own(const char *path, uint64_t *lease)
    int phb_lease_is_alive(const char *path, uint64_t lease)
    int phb_lease_remove_file(const char *path)


cdef extern from "pyhub/segment.h" nogil:
    ctypedef struct phb_segment_header:
        uint32_t abi_version
        uint32_t byte_order
        uint32_t mutex_size
        uint32_t creator_uid
        uint64_t segment_size
        uint64_t pid_namespace
        uint64_t created_ns
        uint32_t creator_pid
        unsigned char segment_id[16]
    ctypedef struct phb_segment_live:
        phb_u64 owner_lease
        phb_u32 owner_pid
        phb_u32 is_closed
    ctypedef struct phb_segment:
        unsigned char *base
        uint64_t size
        int fd
        int writable
        phb_segment_live *live
    void phb_segment_detach(phb_segment *)
    int phb_segment_prefault(const phb_segment *, uint64_t at, uint64_t size)
    int phb_segment_is_named(const phb_segment *, const char *path)
    int phb_segment_remove_dead(const char *path, const char *leases)
    int phb_segment_is_dead(int fd, const char *leases, phb_segment_header *)
    int phb_segment_companion(char *path, const char *beside, const phb_segment_header *)
    int phb_segment_is_left(const phb_segment_live *, const char *leases)
    int phb_segment_join(const phb_segment *, const char *path, const char *leases,
                         uint64_t lease)
    void phb_segment_leave(phb_segment_live *, uint64_t lease)


cdef extern from "pyhub/readers.h" nogil:
    enum:
        PHB_READER_NAME_BYTES
        PHB_READER_PINS
        PHB_MAX_READERS
        PHB_POLICY_LATEST
        PHB_POLICY_EVERY
        PHB_POLICY_BLOCK
        PHB_POLICY_DROP_NEWEST
        PHB_POLICY_DROP_OLDEST
    ctypedef struct phb_readers_constants:
        uint64_t patience_ns
        uint32_t n_places
    ctypedef struct phb_reader_place:
        phb_u64 lease
        phb_u32 pid
        phb_u32 policy
        char name[64]
        phb_u64 cursor
        phb_u64 n_read
        phb_u64 n_lost
        phb_u64 max_lag
        phb_u32 pin[6]
        phb_u64 stalled_ns
        phb_u64 n_dropped
    ctypedef struct phb_readers_control:
        phb_u64 awaited
    ctypedef struct phb_readers:
        phb_readers_constants constants
        phb_readers_control *control
        phb_segment segment
        phb_reader_place *places
    int phb_readers_attach(phb_readers *, const char *beside, const phb_segment_header *,
                           const char *leases)
    uint32_t phb_readers_n_used(const phb_readers *)
    uint32_t phb_readers_reap(phb_readers *)
    void phb_readers_leave_place(phb_readers *, uint32_t at)


cdef extern from "pyhub/datablock.h" nogil:
    enum:
        PHB_MAX_NDIM
        PHB_DTYPE_BYTES
        PHB_MAX_SLOTS
        PHB_ZONE_FLEX
        PHB_ZONE_STRUCTURED
        PHB_FLEX_MSGPACK
        PHB_FLEX_JSON
    ctypedef struct phb_datablock_constants:
        phb_segment_header segment
        uint64_t flex_zone_capacity
        uint64_t flex_zone_stride
        uint64_t flex_zone_offset
        uint64_t structured_buffer_capacity
        uint64_t structured_buffer_stride
        uint64_t structured_buffer_offset
        uint64_t control_offset
        uint64_t itemsize
        uint64_t shape[8]
        uint32_t ndim
        uint32_t n_slots
        char dtype[1024]
    ctypedef struct phb_datablock_control:
        phb_u32 is_writing
        phb_u32 writer_pid
        phb_u64 n_recovered
        phb_u64 n_aborted
        phb_u64 n_dropped
        phb_u64 commit
    ctypedef struct phb_snapshot:
        uint64_t commit
        uint64_t flex_zone_size
        uint64_t flex_zone_version
        uint64_t structured_buffer_size
        uint64_t structured_buffer_version
        double timestamp
        uint64_t newest_slot
        uint64_t n_filled
        uint64_t zones
        uint64_t position
        uint64_t n_dropped
    ctypedef struct phb_cursor:
        uint64_t position
        uint64_t version
        uint64_t n_dropped
        uint64_t slot
        uint64_t newest
        uint64_t commit
        uint64_t lapped_at
        uint64_t margin
    ctypedef struct phb_frame:
        uint64_t commit
        uint64_t position
        uint64_t version
        uint64_t frame_id
        uint64_t timestamp_ns
        uint64_t size
        uint64_t slot
        uint64_t newest
        uint64_t n_slots
        uint64_t flex_version
        uint64_t flex_size
        uint32_t flex_encoding
        int has_flex
        int has_data
    ctypedef struct phb_update:
        uint32_t zones
        uint32_t flex_encoding
        uint64_t flex_size
        uint64_t structured_size
        const uint64_t *frame_id
        uint64_t timestamp_ns
    ctypedef struct phb_datablock:
        phb_datablock_constants constants
        phb_segment_live *live
        phb_datablock_control *control
        phb_readers readers
        int is_open
        uint32_t gate
        uint32_t slot
        uint32_t entry
        phb_snapshot base
    ctypedef struct phb_reader:
        phb_readers *table
        uint32_t at
    int phb_datablock_create(phb_datablock *, phb_segment *, const char *directory,
                             const char *path, const char *name, uint32_t n_places,
                             uint64_t patience_ns, const char *leases, uint64_t lease)
    int phb_datablock_attach(phb_datablock *, phb_segment *, const char *path,
                             uint32_t owner_uid, const char *leases)
    void phb_datablock_close(phb_datablock *, phb_segment *, const char *path)
    void phb_datablock_snapshot(const phb_datablock *, phb_snapshot *)
    int phb_datablock_read(const phb_datablock *, const uint64_t *position, void *data,
                           void *flex, phb_frame *)
    int phb_datablock_read_following(const phb_datablock *, const phb_cursor *, int in_order,
                                     void *data, void *flex, phb_frame *)
    int phb_datablock_read_next(const phb_datablock *, const phb_cursor *, void *data,
                                void *flex, phb_frame *)
    int phb_datablock_is_valid(const phb_datablock *, const phb_frame *)
    phb_cursor phb_cursor_start(const phb_snapshot *)
    uint64_t phb_cursor_n_lost(const phb_cursor *, const phb_frame *)
    void phb_cursor_pass(phb_cursor *, const phb_frame *)
    int phb_datablock_try_begin(phb_datablock *)
    int phb_datablock_begin(phb_datablock *, int64_t deadline_ns)
    int phb_datablock_claim(phb_datablock *)
    void *phb_datablock_data(phb_datablock *)
    void *phb_datablock_flex(phb_datablock *)
    int phb_datablock_end(phb_datablock *, const phb_update *, phb_snapshot *)
    int phb_datablock_drop(phb_datablock *)
    int phb_datablock_abort(phb_datablock *)
    int phb_datablock_is_awaited(const phb_datablock *, uint64_t seen)
    int phb_datablock_is_mine(const phb_datablock *)
    int phb_datablock_recover(phb_datablock *)
    int phb_datablock_admit(const phb_datablock *, phb_readers *, phb_reader *,
                            const char *name, uint32_t policy, int from_first,
                            uint64_t lease, phb_cursor *, int64_t deadline_ns)
    int phb_datablock_pin(const phb_datablock *, phb_reader *, const uint64_t *position,
                          void *flex, phb_frame *, uint32_t *pin)
    int phb_datablock_pin_next(const phb_datablock *, phb_reader *, const phb_cursor *,
                               void *flex, phb_frame *, uint32_t *pin)
    void phb_reader_unpin(phb_reader *, uint32_t pin)
    void phb_reader_pass(phb_reader *, uint64_t position, uint64_t n_read, uint64_t n_lost,
                         uint64_t lag)


cdef extern from "pyhub/flex.h" nogil:
    int phb_flex_check(const unsigned char *object, uint64_t size,
                       uint32_t max_depth, uint64_t max_items)
