/* stepping.h: a child that is moved on instruction by instruction, and killed.
 *
 *   stepper_start    fork; the child prepares, stops, acts, stops again
 *   stepper_record   make it act step by step, and write down where it was
 *   stepper_run_to   make another child act as far as a step of that record
 *   stepper_kill     kill -9
 *
 * A step costs about 20 us, so to begin from the start for each of n kills
 * would take n * n / 2 of them. Instead a break point is set in the program's
 * own text, at a place of the record that was not met often before, and only
 * the rest is stepped. System calls are one step, and so are the functions of
 * `stepper_calls`, which touch nothing that is shared.
 */
#ifndef TESTS_STEPPING_H
#define TESTS_STEPPING_H

#include "support.h"

#include <sys/ptrace.h>
#include <sys/user.h>

enum { STEPPER_SKIP = 77, STEPPER_MAX_STEPS = 200000, STEPPER_LOOK_BACK = 600 };

typedef struct stepper_record {
    uint64_t n;                          /* steps from the first stop to the second */
    uint64_t at[STEPPER_MAX_STEPS];      /* address before the step */
    uint32_t n_before[STEPPER_MAX_STEPS]; /* how often it was met before */
} stepper_record;

/* Addresses of functions that are one step; the last is clock_gettime: it begins
 * anew whenever the kernel's clock ticks, so that slow steps would never end it. */
enum { STEPPER_CALLS = 4 };
static uint64_t stepper_calls[STEPPER_CALLS];

extern char __executable_start, etext; /* of the linker */

static inline int stepper_is_own_text(uint64_t at)
{
    return at >= (uint64_t)(uintptr_t)&__executable_start && at < (uint64_t)(uintptr_t)&etext;
}

typedef void stepper_part(void);

static inline pid_t stepper_start(stepper_part *prepare, stepper_part *act)
{
    stepper_calls[STEPPER_CALLS - 1] = (uint64_t)(uintptr_t)&clock_gettime;
    const pid_t child = fork_child();
    int status;
    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL)) {
            _exit(STEPPER_SKIP);
        }
        if (prepare) {
            prepare();
        }
        raise(SIGSTOP);
        act();
        raise(SIGSTOP);
        _exit(1);
    }
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == STEPPER_SKIP) {
        fprintf(stderr, "ptrace is not permitted here\n");
        exit(STEPPER_SKIP);
    }
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    return child;
}

/* Let it run, with PTRACE_CONT or PTRACE_SINGLESTEP; false at its second stop. */
static inline int stepper_resume(pid_t child, int how)
{
    int status;
    CHECK(ptrace((enum __ptrace_request)how, child, NULL, NULL) == 0);
    CHECK(waitpid(child, &status, 0) == child && WIFSTOPPED(status));
    CHECK(WSTOPSIG(status) == SIGTRAP || WSTOPSIG(status) == SIGSTOP);
    return WSTOPSIG(status) == SIGTRAP;
}

static inline struct user_regs_struct stepper_registers(pid_t child)
{
    struct user_regs_struct registers;
    CHECK(ptrace(PTRACE_GETREGS, child, NULL, &registers) == 0);
    return registers;
}

/* Run until it comes to `address`; false if it came to its second stop before. */
static inline int stepper_run_until(pid_t child, uint64_t address)
{
    void *where = (void *)(uintptr_t)address;
    errno = 0;
    const long text = ptrace(PTRACE_PEEKTEXT, child, where, NULL);
    CHECK(errno == 0);
    const long trap = (long)(((unsigned long)text & ~0xfful) | 0xcc);
    CHECK(ptrace(PTRACE_POKETEXT, child, where, (void *)trap) == 0);
    const int goes_on = stepper_resume(child, PTRACE_CONT);
    CHECK(ptrace(PTRACE_POKETEXT, child, where, (void *)text) == 0);
    if (goes_on) {
        struct user_regs_struct registers = stepper_registers(child);
        CHECK(registers.rip == address + 1);
        registers.rip = address;
        CHECK(ptrace(PTRACE_SETREGS, child, NULL, &registers) == 0);
    }
    return goes_on;
}

/* One instruction, system call, or call of stepper_calls. */
static inline int stepper_step(pid_t child)
{
    const struct user_regs_struct registers = stepper_registers(child);
    for (size_t i = 0; i < STEPPER_CALLS; i++) {
        if (registers.rip == stepper_calls[i]) {
            errno = 0;
            const long back =
                ptrace(PTRACE_PEEKDATA, child, (void *)(uintptr_t)registers.rsp, NULL);
            CHECK(errno == 0);
            return stepper_run_until(child, (uint64_t)back);
        }
    }
    return stepper_resume(child, PTRACE_SINGLESTEP);
}

/* At step `at` the parent does its part. */
typedef struct stepper_event {
    uint64_t at;
    stepper_part *part;
} stepper_event;

static inline void stepper_record_all(pid_t child, stepper_record *record, stepper_event event)
{
    static struct {
        uint64_t at;
        uint32_t n;
    } met[1 << 19]; /* open addressing */
    memset(met, 0, sizeof met);
    record->n = 0;
    do {
        const uint64_t at = stepper_registers(child).rip;
        uint64_t place = at * 0x9e3779b97f4a7c15ull >> 45;
        while (met[place].n && met[place].at != at) {
            place = (place + 1) % (1 << 19);
        }
        CHECK(record->n < STEPPER_MAX_STEPS);
        met[place].at = at;
        if (event.part && event.at == record->n) {
            event.part();
        }
        record->at[record->n] = at;
        record->n_before[record->n++] = met[place].n++;
    } while (stepper_step(child));
}

/* From step `from` to step `to` of the record; false if the second stop came first,
 * as it may where the way depends on the clock. */
static inline int stepper_run_to(pid_t child, const stepper_record *record, uint64_t from,
                                 uint64_t to)
{
    uint64_t best = from, cost = to - from, n_hits = 1;
    const uint64_t stop = to > from + STEPPER_LOOK_BACK ? to - STEPPER_LOOK_BACK : from;
    for (uint64_t i = to; i > stop; i--) {
        const uint64_t price = 5 * record->n_before[i] + 5 + (to - i);
        if (price < cost && stepper_is_own_text(record->at[i])) {
            best = i;
            cost = price;
        }
    }
    for (uint64_t i = from; i < best; i++) {
        n_hits += record->at[i] == record->at[best];
    }
    for (uint64_t n = 0; best > from && n < n_hits; n++) {
        /* A break point where it stands would not be met: one step ahead first. */
        const int is_there = stepper_registers(child).rip == record->at[best];
        if (n == 0 && is_there) {
            continue;
        }
        if ((is_there && !stepper_step(child)) || !stepper_run_until(child, record->at[best])) {
            return 0;
        }
    }
    for (uint64_t i = best; i < to; i++) {
        if (!stepper_step(child)) {
            return 0;
        }
    }
    return 1;
}

static inline void stepper_kill(pid_t child)
{
    int status;
    kill(child, SIGKILL);
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
}

#endif
