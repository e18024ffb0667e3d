// consumer.cpp: read every frame of a channel from a C++17 program, with
// pyhub's headers alone.
//
//   consumer NAME N_FRAMES [FILE]
//
// Waits for the channel, then prints a line for each frame, in order:
//
//   frame 17 sum 268369920 lost 0 flex 82a56672616d65cf...
//
// `lost` counts the frames that were overwritten before this one was read;
// `flex` are the frame's parameters, MessagePack (or JSON) bytes in hex. With
// FILE the frames' bytes are also written there: numpy.fromfile(FILE, "<u2").
//
// Exit status
//   0  N_FRAMES frames were read, none was lost
//   1  wrong arguments
//   2  the channel cannot be attached or read; the message says why
//   3  N_FRAMES frames went by, but some of them were lost
//   4  the producer closed the channel before that
//   5  the producer died before that
//   6  the channel, or its next frame, did not come in time

#include "channel.h"

#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

namespace {

enum ExitStatus { Complete, Usage, Failed, FramesLost, Closed, Died, TimedOut };

constexpr int64_t second_ns = 1'000'000'000;
constexpr int64_t attach_timeout_ns = 10 * second_ns;
constexpr int64_t frame_timeout_ns = 10 * second_ns;

// A read-only mapping of somebody's DataBlock; unmapped with the object.
class Channel {
public:
    phb_datablock db{};

    Channel() = default;
    Channel(const Channel &) = delete;
    Channel &operator=(const Channel &) = delete;
    ~Channel()
    {
        phb_segment_detach(&readers_.segment);
        phb_segment_detach(&segment_);
    }

    int attach(const channel_files &files)
    {
        const int status =
            phb_datablock_attach(&db, &segment_, files.segment, geteuid(), nullptr);
        // There it says that it sleeps; who may not write there naps instead.
        if (status == PHB_OK && phb_readers_attach(&readers_, files.segment,
                                                   &db.constants.segment,
                                                   files.leases) == PHB_OK) {
            waiting_.awaited = &readers_.control->awaited;
        }
        return status;
    }

    int wait_change(uint64_t seen, int64_t deadline_ns) const
    {
        return phb_wait_change(&db.control->commit, seen, deadline_ns, &waiting_);
    }

    bool is_closed() const { return phb_load32_acquire(&db.live->is_closed) != 0; }

    bool is_alive(const channel_files &files) const
    {
        return !phb_segment_is_left(db.live, files.leases);
    }

private:
    phb_waiting waiting_{}; // no spinning

    phb_segment segment_ = [] {
        phb_segment none{};
        none.fd = -1;
        return none;
    }();
    phb_readers readers_ = [] {
        phb_readers none{};
        none.segment.fd = -1;
        return none;
    }();
};

// Wait until the channel exists. A name that is not there yet is looked up
// again: segments appear whole or not at all, so there is nothing else to await.
int attach_when_there(Channel &channel, const channel_files &files)
{
    const int64_t deadline = phb_monotonic_ns() + attach_timeout_ns;
    const timespec nap = phb_timespec(10'000'000);
    for (;;) {
        const int status = channel.attach(files);
        if (status != PHB_SYSTEM || errno != ENOENT) {
            return status;
        }
        if (phb_monotonic_ns() >= deadline) {
            return PHB_TIMEOUT;
        }
        nanosleep(&nap, nullptr);
    }
}

std::string to_hex(const std::vector<unsigned char> &bytes, uint64_t size)
{
    static const char digits[] = "0123456789abcdef";
    std::string text;
    for (uint64_t i = 0; i < size; i++) {
        text += digits[bytes[i] >> 4];
        text += digits[bytes[i] & 15];
    }
    return text.empty() ? "-" : text;
}

// Reads frames one after the other, each whole or not at all.
class Follower {
public:
    Follower(Channel &channel, const channel_files &files)
        : channel_(channel), files_(files),
          pixels_((channel.db.constants.structured_buffer_capacity + 1) / sizeof(uint16_t)),
          flex_(channel.db.constants.flex_zone_capacity)
    {
        // Start with the oldest frame that is still there.
        phb_snapshot now;
        phb_datablock_snapshot(&channel.db, &now);
        cursor_.position = now.position - now.n_filled;
        cursor_.version = now.structured_buffer_version - now.n_filled;
        cursor_.n_dropped = now.n_dropped;
    }

    // The next frame, or a later one if it was lost: then `n_lost` tells how
    // many were. PHB_EMPTY: none came and none will, the producer is gone.
    int next()
    {
        const int64_t deadline = phb_monotonic_ns() + frame_timeout_ns;
        bool is_over = false;
        n_lost = 0;
        for (;;) {
            // The header's read copies the frame, then looks whether its slot
            // still has the sequence number of that frame: PHB_OK means that
            // frame and parameters are untorn and belong together.
            const int status = phb_datablock_read_next(&channel_.db, &cursor_, pixels_.data(),
                                                       flex_.data(), &frame);
            if (status == PHB_OK) {
                n_lost = phb_cursor_n_lost(&cursor_, &frame);
                phb_cursor_pass(&cursor_, &frame);
                return PHB_OK;
            }
            if (status != PHB_EMPTY && status != PHB_BUSY) {
                return status;
            } else if (is_over) {
                return PHB_EMPTY;
            } else if (channel_.is_closed() || !channel_.is_alive(files_)) {
                is_over = true; // look once more: it may have published before it went
            } else if (channel_.wait_change(frame.commit, deadline) == PHB_TIMEOUT) {
                return PHB_TIMEOUT;
            }
        }
    }

    uint64_t sum() const
    {
        return std::accumulate(pixels_.begin(), pixels_.begin() + n_pixels(), uint64_t{0});
    }

    int64_t n_pixels() const { return static_cast<int64_t>(frame.size / sizeof(uint16_t)); }
    const std::vector<uint16_t> &pixels() const { return pixels_; }
    std::string parameters() const { return to_hex(flex_, frame.flex_size); }

    phb_frame frame{};
    uint64_t n_lost = 0;

private:
    Channel &channel_;
    const channel_files &files_;
    std::vector<uint16_t> pixels_;
    std::vector<unsigned char> flex_;
    phb_cursor cursor_{};
};

int fail(const char *what, const char *name, int status)
{
    std::fprintf(stderr, "consumer: %s channel '%s': %s\n", what, name,
                 channel_explain(status));
    return status == PHB_TIMEOUT ? TimedOut : Failed;
}

void print_attached(const char *name, const phb_datablock_constants &constants)
{
    std::printf("attached %s %s", name, constants.dtype);
    for (uint32_t i = 0; i < constants.ndim; i++) {
        std::printf("%s%" PRIu64, i ? "x" : " ", constants.shape[i]);
    }
    std::printf(" slots %" PRIu32 "\n", constants.n_slots);
}

} // namespace

int main(int argc, char **argv)
{
    channel_files files;
    if (argc < 3 || argc > 4 || !channel_find_files(&files, argv[1])) {
        std::fputs("usage: consumer NAME N_FRAMES [FILE]\n", stderr);
        return Usage;
    }
    // A line at a time, also into a pipe: whoever reads it waits for it.
    std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
    const char *name = argv[1];
    const uint64_t n_frames = std::strtoull(argv[2], nullptr, 10);

    Channel channel;
    const int attached = attach_when_there(channel, files);
    if (attached != PHB_OK) {
        return fail("cannot attach to", name, attached);
    }
    if (std::string(channel.db.constants.dtype) != "<u2") {
        std::fprintf(stderr, "consumer: channel '%s' has dtype %s, this example reads <u2\n",
                     name, channel.db.constants.dtype);
        return Failed;
    }
    std::ofstream file;
    if (argc == 4) {
        file.open(argv[3], std::ios::binary | std::ios::trunc);
        if (!file) {
            std::fprintf(stderr, "consumer: cannot write %s: %s\n", argv[3],
                         std::strerror(errno));
            return Failed;
        }
    }
    Follower follower(channel, files);
    print_attached(name, channel.db.constants);

    uint64_t n_read = 0, n_lost = 0;
    while (n_read + n_lost < n_frames) {
        const int status = follower.next();
        n_lost += follower.n_lost;
        if (status == PHB_EMPTY) {
            const bool is_closed = channel.is_closed();
            std::fprintf(stderr, "consumer: the producer of '%s' %s after %" PRIu64 " frames\n",
                         name, is_closed ? "closed it" : "died", n_read + n_lost);
            return is_closed ? Closed : Died;
        }
        if (status != PHB_OK) {
            return fail("cannot read", name, status);
        }
        n_read++;
        std::printf("frame %" PRIu64 " sum %" PRIu64 " lost %" PRIu64 " flex %s\n",
                    follower.frame.frame_id, follower.sum(), follower.n_lost,
                    follower.parameters().c_str());
        if (file.is_open()) {
            file.write(reinterpret_cast<const char *>(follower.pixels().data()),
                       static_cast<std::streamsize>(follower.frame.size));
        }
    }
    std::printf("read %" PRIu64 " lost %" PRIu64 "\n", n_read, n_lost);
    return n_lost ? FramesLost : Complete;
}
