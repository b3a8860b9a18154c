/* Hides VNNI and AMX, with CPUID_MASK=avx2 AVX-512 too, and with avx_vnni AVX-512 and AMX alone, from the libraries of the program it is preloaded into.

   Intel CPUs can make the CPUID instruction fault (Linux: arch_prctl(ARCH_SET_CPUID), flag cpuid_fault). The handler
   runs it, clears the feature bits and goes on behind it, so that ONNX Runtime picks the kernels of an older CPU and
   runs them at full speed. Exits with status 77 where the CPU or the system cannot.

   cc -O2 -shared -fPIC -o cpuid_mask.so cpuid_mask.c; CPUID_MASK=avx512 LD_PRELOAD=./cpuid_mask.so python ... */

#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

static int keep_avx512, keep_avx_vnni;

static void run_masked(int signal_number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    if (code[0] != 0x0F || code[1] != 0xA2) { /* a real fault, not CPUID */
        signal(signal_number, SIG_DFL);
        return;
    }
    unsigned leaf = (unsigned)registers[REG_RAX], subleaf = (unsigned)registers[REG_RCX], a, b, c, d;
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1UL);
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(subleaf));
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0UL);
    if (leaf == 7 && subleaf == 0) {
        c &= ~BIT(11);                         /* AVX512_VNNI */
        d &= ~(BIT(22) | BIT(24) | BIT(25));   /* AMX */
        if (!keep_avx512) {
            b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(28) | BIT(30) | BIT(31)); /* AVX512 F DQ IFMA CD BW VL */
            c &= ~(BIT(1) | BIT(6) | BIT(12) | BIT(14));                       /* VBMI VBMI2 BITALG VPOPCNTDQ */
            d &= ~(BIT(8) | BIT(23));                                          /* VP2INTERSECT FP16 */
        }
    } else if (leaf == 7 && subleaf == 1) {
        a &= ~((keep_avx_vnni ? 0 : BIT(4)) | BIT(5)); /* AVX_VNNI AVX512_BF16 */
        d &= ~(BIT(4) | BIT(10));              /* AVX_VNNI_INT8 AVX_VNNI_INT16 */
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void start(void) {
    const char *name = getenv("CPUID_MASK");
    if (name == NULL) return;
    keep_avx512 = strcmp(name, "avx512") == 0;
    keep_avx_vnni = strcmp(name, "avx_vnni") == 0;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = run_masked;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &action, NULL);
    if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0UL) != 0) _exit(77);
}
