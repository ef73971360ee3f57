/* Reads from the files of one folder fail with EIO from the n-th on: below Python, NumPy, torch and Rust.
 *
 * FAIL_UNDER: start of the paths. FAIL_AFTER: how many reads succeed. FAIL_SEEN: a file that is created by the
 * first read that fails. A failing disk under mapped memory is a SIGBUS instead, which no preloaded library makes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long reads;

static int fails(int file) {
    const char *under = getenv("FAIL_UNDER"), *after = getenv("FAIL_AFTER"), *seen = getenv("FAIL_SEEN");
    char link[64], path[4096];
    if (!under || !after)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    if (strncmp(path, under, strlen(under)) || atomic_fetch_add(&reads, 1) < atol(after))
        return 0;
    if (seen)
        close(open(seen, O_CREAT | O_WRONLY, 0600));
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL(file)                                                                                          \
    do {                                                                                                    \
        if (fails(file)) {                                                                                  \
            errno = EIO;                                                                                    \
            return -1;                                                                                      \
        }                                                                                                   \
    } while (0)

ssize_t read(int file, void *to, size_t size) {
    FAIL(file);
    return REAL(read)(file, to, size);
}

ssize_t pread(int file, void *to, size_t size, off_t place) {
    FAIL(file);
    return REAL(pread)(file, to, size, place);
}

ssize_t pread64(int file, void *to, size_t size, off64_t place) {
    FAIL(file);
    return REAL(pread64)(file, to, size, place);
}

ssize_t readv(int file, const struct iovec *to, int count) {
    FAIL(file);
    return REAL(readv)(file, to, count);
}

ssize_t preadv(int file, const struct iovec *to, int count, off_t place) {
    FAIL(file);
    return REAL(preadv)(file, to, count, place);
}

ssize_t copy_file_range(int from, off64_t *place, int to, off64_t *target, size_t size, unsigned flags) {
    FAIL(from);
    return REAL(copy_file_range)(from, place, to, target, size, flags);
}

ssize_t sendfile(int to, int from, off_t *place, size_t size) {
    FAIL(from);
    return REAL(sendfile)(to, from, place, size);
}

ssize_t sendfile64(int to, int from, off64_t *place, size_t size) {
    FAIL(from);
    return REAL(sendfile64)(to, from, place, size);
}
