/* Counts the calls that change what lies below one folder; at a chosen one fails, or kills.

   For LD_PRELOAD. FAULTS_FOLDER names the folder, FAULTS_CONTROL a file of one `struct control`
   that this process and its children share with whoever started them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { KILL = 1, FAIL = 2, FULL = 3 }; /* FULL: from that call on nothing that takes room works */

static struct control {
    long mode, at, count;
    char call[512];
    char room[4096];
} *control, none;
static const char *folder = "";

__attribute__((constructor)) static void start(void) {
    const char *name = getenv("FAULTS_CONTROL");
    int file = name ? open(name, O_RDWR) : -1;
    control = &none;
    if (file < 0) return;
    void *found = mmap(NULL, sizeof none, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (found == MAP_FAILED) return;
    folder = getenv("FAULTS_FOLDER");
    control = found;
}

static int below(char *where, int directory, const char *path) {
    char link[64];
    where[0] = 0;
    if (path == NULL || path[0] != '/') {
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t size = readlink(directory == AT_FDCWD ? "/proc/self/cwd" : link, where, 255);
        if (size < 0) return 0;
        where[size] = 0;
        if (path) strcat(where, "/");
    }
    if (path) strncat(where, path, 255);
    size_t size = strlen(folder);
    return size && !strncmp(where, folder, size) && where[size] == '/';
}

/* Returns 0, or -1 with errno set where the call has to fail; `half` does half of a write. */
static int strike(const char *call, int room, int directory, const char *path,
                  const void *half, size_t size) {
    char where[512];
    int before = errno;
    if (control == NULL || !below(where, directory, path)) {
        errno = before;
        return 0;
    }
    long count = __atomic_add_fetch(&control->count, 1, __ATOMIC_SEQ_CST);
    if (count <= (long)sizeof control->room) control->room[count - 1] = room;
    int hit = control->at && count == control->at;
    if (hit) snprintf(control->call, sizeof control->call, "%s %.490s", call, where);
    errno = before;
    if (hit && control->mode == KILL) {
        ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
        if (half) real(directory, half, size / 2);
        kill(getpid(), SIGKILL);
        pause();
    }
    if (control->mode == FULL && control->at && count >= control->at && room) return errno = ENOSPC, -1;
    if (hit && control->mode == FAIL) return errno = EIO, -1;
    return 0;
}

#define WRAP(kind, name, types, names, room, directory, path, half, size)            \
    kind name types {                                                                \
        static kind(*real) types;                                                    \
        if (real == NULL) real = (kind(*) types)dlsym(RTLD_NEXT, #name);             \
        if (strike(#name, room, directory, path, half, size)) return -1;             \
        return real names;                                                           \
    }

#define OPEN(name, types, directory)                                            \
    int name types {                                                                 \
        static int(*real)(int, const char *, int, mode_t);                           \
        va_list rest;                                                                \
        va_start(rest, how);                                                         \
        mode_t mode = how & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;      \
        va_end(rest);                                                                \
        if (real == NULL) real = dlsym(RTLD_NEXT, "openat");                         \
        if (how & (O_CREAT | O_TRUNC) && strike(#name, 1, directory, path, NULL, 0)) \
            return -1;                                                               \
        return real(directory, path, how, mode);                                     \
    }

OPEN(open, (const char *path, int how, ...), AT_FDCWD)
OPEN(open64, (const char *path, int how, ...), AT_FDCWD)
OPEN(openat, (int at, const char *path, int how, ...), at)
OPEN(openat64, (int at, const char *path, int how, ...), at)

WRAP(ssize_t, write, (int f, const void *b, size_t n), (f, b, n), 1, f, NULL, b, n)
WRAP(ssize_t, pwrite, (int f, const void *b, size_t n, off_t o), (f, b, n, o), 1, f, NULL, NULL, 0)
WRAP(ssize_t, pwrite64, (int f, const void *b, size_t n, off_t o), (f, b, n, o), 1, f, NULL, NULL, 0)
WRAP(ssize_t, writev, (int f, const struct iovec *v, int n), (f, v, n), 1, f, NULL,
     v->iov_base, v->iov_len)
WRAP(int, ftruncate, (int f, off_t n), (f, n), 0, f, NULL, NULL, 0)
WRAP(int, ftruncate64, (int f, off_t n), (f, n), 0, f, NULL, NULL, 0)
WRAP(int, fsync, (int f), (f), 0, f, NULL, NULL, 0)
WRAP(int, fdatasync, (int f), (f), 0, f, NULL, NULL, 0)
WRAP(int, rename, (const char *a, const char *b), (a, b), 0, AT_FDCWD, b, NULL, 0)
WRAP(int, renameat, (int p, const char *a, int q, const char *b), (p, a, q, b), 0, q, b, NULL, 0)
WRAP(int, unlink, (const char *a), (a), 0, AT_FDCWD, a, NULL, 0)
WRAP(int, unlinkat, (int p, const char *a, int h), (p, a, h), 0, p, a, NULL, 0)
WRAP(int, rmdir, (const char *a), (a), 0, AT_FDCWD, a, NULL, 0)
WRAP(int, mkdir, (const char *a, mode_t m), (a, m), 1, AT_FDCWD, a, NULL, 0)
WRAP(int, mkdirat, (int p, const char *a, mode_t m), (p, a, m), 1, p, a, NULL, 0)
WRAP(int, link, (const char *a, const char *b), (a, b), 1, AT_FDCWD, b, NULL, 0)
WRAP(int, symlink, (const char *a, const char *b), (a, b), 1, AT_FDCWD, b, NULL, 0)
