/* Puts every tensor next to a page that cannot be touched: a kernel that reads or writes outside of
 * its arguments dies, where it would otherwise find the neighbour's numbers.
 *
 * PyTorch asks posix_memalign for the memory of CPU tensors, and Triton's interpreter reads and
 * writes where a GPU would. Preloaded, this library answers: each block ends at a guard page (built
 * with -DAT_END) or begins behind one, holds NaN, and is never handed out again.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE ((size_t)4096)
#define REGION ((size_t)1 << 40)

static char *region;
static size_t used = PAGE;
static size_t *pages_of; /* by the index of a block's first page */
static void (*real_free)(void *);

static void *reserve(size_t bytes, int protection)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *at = mmap(NULL, bytes, protection, flags, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

__attribute__((constructor)) static void start(void)
{
    real_free = (void (*)(void *))dlsym(RTLD_NEXT, "free");
    pages_of = reserve(REGION / PAGE * sizeof *pages_of, PROT_READ | PROT_WRITE);
    region = reserve(REGION, PROT_NONE);
}

int posix_memalign(void **out, size_t alignment, size_t size)
{
    size_t pages = (size + PAGE - 1) / PAGE, at = __sync_fetch_and_add(&used, (pages + 1) * PAGE);
    char *first = region + at;
    if (!region || !pages_of || alignment > PAGE || at + (pages + 1) * PAGE > REGION)
        return ENOMEM;
    if (mprotect(first, pages * PAGE, PROT_READ | PROT_WRITE))
        return ENOMEM;
    memset(first, 0xFF, pages * PAGE);
    pages_of[at / PAGE] = pages;
#ifdef AT_END
    *out = (void *)((uintptr_t)(first + pages * PAGE - size) & ~(uintptr_t)(alignment - 1));
#else
    *out = first;
#endif
    return 0;
}

void free(void *block)
{
    size_t at = (char *)block - region;
    if (region && (char *)block >= region && at < REGION) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
        size_t page = at / PAGE;
        mmap(region + page * PAGE, pages_of[page] * PAGE, PROT_NONE, flags, -1, 0);
    } else if (real_free) { /* what dlsym itself frees before is left */
        real_free(block);
    }
}
