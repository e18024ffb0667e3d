/* lease.c: a lease lives as long as its process, whatever that one opens,
 * closes, forks and executes.
 *
 *   lease DIRECTORY
 *
 * Prints 1 or 0 for each claim.
 */
#include "support.h"

static block_files files;

/* A holder of a lease that does `act`, says its lease, and waits to be killed. */
typedef void (*act)(void);

static pid_t start_holder(act what, uint64_t *lease)
{
    int ends[2];
    CHECK(pipe(ends) == 0);
    const pid_t holder = fork_child();
    if (holder == 0) {
        uint64_t mine;
        CHECK(phb_lease_own(files.leases, &mine) == PHB_OK);
        what();
        CHECK(write(ends[1], &mine, sizeof mine) == (ssize_t)sizeof mine);
        for (;;) {
            pause();
        }
    }
    CHECK(read(ends[0], lease, sizeof *lease) == (ssize_t)sizeof *lease);
    close(ends[0]);
    close(ends[1]);
    return holder;
}

static void do_nothing(void)
{
}

static void open_and_close(void)
{
    for (int flags = O_RDONLY; flags <= O_RDWR; flags += O_RDWR) {
        const int other = open(files.leases, flags);
        CHECK(other >= 0 && close(other) == 0);
    }
}

/* Children outlive their parent here; they end with the program that started
 * the test, at the latest, by the pipe to it. */
static int lifeline[2];

static void wait_for_the_end(void)
{
    char byte;
    close(lifeline[1]);
    _exit(read(lifeline[0], &byte, 1) != 0);
}

/* Returns in the parent when the child is at work: until then it may have its
 * parent's files, as that may die before it has done a step. */
static pid_t fork_one_at_work(void)
{
    int ends[2];
    char byte = 0;
    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(write(ends[1], &byte, 1) == 1);
    } else {
        CHECK(read(ends[0], &byte, 1) == 1);
    }
    close(ends[0]);
    close(ends[1]);
    return child;
}

static void leave_a_child(void)
{
    if (fork_one_at_work() == 0) {
        wait_for_the_end();
    }
}

static void leave_a_child_with_a_lease(void)
{
    if (fork_one_at_work() == 0) {
        uint64_t own;
        CHECK(phb_lease_own(files.leases, &own) == PHB_OK);
        wait_for_the_end();
    }
}

static void leave_a_program(void)
{
    if (fork_one_at_work() == 0) {
        dup2(lifeline[0], STDIN_FILENO);
        execlp("cat", "cat", (char *)NULL);
        _exit(1);
    }
}

/* Is it alive while it lives, and dead as soon as it is dead? */
static void judge(const char *name, act what)
{
    uint64_t lease;
    const pid_t holder = start_holder(what, &lease);
    const int before = phb_lease_is_alive(files.leases, lease);
    kill(holder, SIGKILL);
    CHECK(waitpid(holder, NULL, 0) == holder);
    printf("%s %d\n%s_killed %d\n", name, before, name,
           phb_lease_is_alive(files.leases, lease));
}

int main(int argc, char **argv)
{
    uint64_t mine, again;
    CHECK(argc == 2);
    files = block_find_files(argv[1]);
    CHECK(pipe2(lifeline, O_CLOEXEC) == 0);
    CHECK(phb_lease_own(files.leases, &mine) == PHB_OK);
    judge("quiet", do_nothing);
    judge("closing", open_and_close);
    judge("forking", leave_a_child);
    judge("forking_again", leave_a_child_with_a_lease);
    judge("executing", leave_a_program);
    CHECK(phb_lease_own(files.leases, &again) == PHB_OK && again == mine);
    printf("own %d\n", phb_lease_is_alive(files.leases, mine));
    return 0;
}
