/* Takes the place of fsync and fdatasync: waits BENCH_SYNC_US microseconds behind each, or, with "skip", does nothing
   and says that all is well. */

#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int after(long call, int fd) {
    const char *setting = getenv("BENCH_SYNC_US");
    if (setting && strcmp(setting, "skip") == 0)
        return 0;
    int result = (int)syscall(call, fd);
    long us = setting ? atol(setting) : 0;
    if (us > 0) {
        struct timespec left = {us / 1000000, us % 1000000 * 1000};
        while (nanosleep(&left, &left) != 0) {
        }
    }
    return result;
}

int fsync(int fd) { return after(SYS_fsync, fd); }
int fdatasync(int fd) { return after(SYS_fdatasync, fd); }
