/* Preloaded into user-mode-linux. Version 6.1 restores the processor's state with a size of its own, which Linux refuses on processors with
   a larger state (AMX). This fills it up with the rest of the process's present state. Elsewhere it changes nothing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>

#define GETREGSET 0x4204
#define SETREGSET 0x4205
#define XSTATE 0x202

long ptrace(int request, ...) {
    static long (*next)(int, pid_t, void *, void *);
    static char whole[1 << 15] __attribute__((aligned(64)));
    va_list args;
    va_start(args, request);
    pid_t pid = va_arg(args, pid_t);
    void *addr = va_arg(args, void *), *data = va_arg(args, void *);
    va_end(args);
    if (!next) next = (long (*)(int, pid_t, void *, void *))dlsym(RTLD_NEXT, "ptrace");
    if (request == SETREGSET && (long)addr == XSTATE) {
        struct iovec *given = data, full = {whole, sizeof whole};
        if (next(GETREGSET, pid, addr, &full) == 0 && full.iov_len > given->iov_len) {
            memcpy(whole, given->iov_base, given->iov_len);
            return next(SETREGSET, pid, addr, &full);
        }
    }
    return next(request, pid, addr, data);
}
