/* Preloaded: what a file system refuses. FAULTS names the calls: flock, fsyncdir, chmod. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int refused(const char *name) {
    const char *faults = getenv("FAULTS");
    return faults && strstr(faults, name) != NULL;
}

int flock(int descriptor, int operation) {
    if (refused("flock")) {
        errno = ENOSYS;
        return -1;
    }
    return ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(descriptor, operation);
}

int fsync(int descriptor) {
    struct stat status;
    if (refused("fsyncdir") && fstat(descriptor, &status) == 0 && S_ISDIR(status.st_mode)) {
        errno = EINVAL;
        return -1;
    }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(descriptor);
}

int chmod(const char *path, mode_t mode) {
    if (refused("chmod")) {
        errno = EPERM;
        return -1;
    }
    return ((int (*)(const char *, mode_t))dlsym(RTLD_NEXT, "chmod"))(path, mode);
}

int fchmodat(int folder, const char *path, mode_t mode, int flags) {
    if (refused("chmod")) {
        errno = EPERM;
        return -1;
    }
    return ((int (*)(int, const char *, mode_t, int))dlsym(RTLD_NEXT, "fchmodat"))(
        folder, path, mode, flags);
}
