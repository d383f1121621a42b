#include "fs/sandbox.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lib/base.h"

#define BIT(cap) (UINT64_C(1) << (cap))

/* What is needed, and for what. */
static const uint64_t kept =
	BIT(CAP_SYS_ADMIN) |       /* registering files for passthrough; the unmount at the end */
	BIT(CAP_DAC_OVERRIDE) |    /* a store of another user */
	BIT(CAP_DAC_READ_SEARCH) |
	BIT(CAP_CHOWN) |           /* lib/owner.h */
	BIT(CAP_FOWNER) |          /* times of its data files */
	BIT(CAP_LEASE) |           /* asking who has them open: lib/datafile.h */
	BIT(CAP_LINUX_IMMUTABLE) | /* closing one off */
	BIT(CAP_SYS_RESOURCE);     /* the blocks that a disk keeps for root */

static int drop_capabilities(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	for (int cap = 0; cap <= CAP_LAST_CAP; cap++)
		if (!(kept & BIT(cap)))
			prctl(PR_CAPBSET_DROP, cap, 0, 0, 0); /* may be without CAP_SETPCAP: then it has few */
	if (syscall(SYS_capget, &head, data) != 0)
		return -errno;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(data); i++) {
		data[i].permitted &= (uint32_t)(kept >> (32 * i));
		data[i].effective &= data[i].permitted;
		data[i].inheritable = 0;
	}
	return syscall(SYS_capset, &head, data) != 0 ? -errno : 0;
}

/* ---- system calls ---- */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)

/* Sanitizers look for leaks by ptrace, and execute the program that names addresses. */
static int filter_calls(void)
{
	return 0;
}

#elif defined(__x86_64__) || defined(__aarch64__)

#ifdef __x86_64__
#define ARCH AUDIT_ARCH_X86_64
#define LAST_CALL 0x3fffffffu /* numbers of x32 begin behind it */
#else
#define ARCH AUDIT_ARCH_AARCH64
#define LAST_CALL 0xffffffffu
#endif

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define DENY BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)
/* The next instruction is for this call alone. */
#define IS(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1)
#define NEVER(name) IS(SYS_##name), DENY

static int filter_calls(void)
{
	static const struct sock_filter code[] = {
		LOAD(arch),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0), DENY,
		LOAD(nr),
		BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, LAST_CALL, 0, 1), DENY,
		/* other programs, and looking into them */
		NEVER(execve), NEVER(execveat), NEVER(ptrace), NEVER(process_vm_readv),
		NEVER(process_vm_writev), NEVER(kcmp), NEVER(pidfd_getfd),
		/* the tree of mounts, namespaces; umount2 is needed at the end */
		NEVER(mount), NEVER(pivot_root), NEVER(chroot), NEVER(setns), NEVER(unshare),
		NEVER(open_tree), NEVER(move_mount), NEVER(fsopen), NEVER(fsconfig), NEVER(fsmount),
		NEVER(fspick), NEVER(mount_setattr), NEVER(open_by_handle_at), NEVER(swapon),
		NEVER(swapoff), NEVER(quotactl), NEVER(acct),
		/* the kernel */
		NEVER(init_module), NEVER(finit_module), NEVER(delete_module), NEVER(kexec_load),
		NEVER(kexec_file_load),
		NEVER(bpf), NEVER(perf_event_open), NEVER(userfaultfd), NEVER(io_uring_setup),
		NEVER(io_uring_enter), NEVER(io_uring_register), NEVER(reboot), NEVER(syslog),
		NEVER(settimeofday), NEVER(clock_settime), NEVER(adjtimex), NEVER(clock_adjtime),
		NEVER(sethostname), NEVER(setdomainname), NEVER(vhangup),
		/* keys, and other users */
		NEVER(keyctl), NEVER(add_key), NEVER(request_key), NEVER(setuid), NEVER(setgid),
		NEVER(setresuid), NEVER(setresgid), NEVER(setgroups),
		/* sockets, but those of this machine: the C library asks its name services by them */
		IS(SYS_socket), BPF_JUMP(BPF_JMP | BPF_JA, 1, 0, 0), ALLOW,
		LOAD(args[0]),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_UNIX, 1, 0), DENY,
		ALLOW,
	};
	const struct sock_fprog program = { .len = WFS_ARRAY_SIZE(code), .filter = (struct sock_filter *)code };

	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) != 0 ? -errno : 0;
}

#else

static int filter_calls(void)
{
	return -EOPNOTSUPP;
}

#endif

int wfs_sandbox_enter(const char **ret_what)
{
	int ret = 0;

	if (geteuid() != 0)
		return 0;
	*ret_what = "no new privileges";
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		return -errno;
	*ret_what = "the filter of system calls";
	ret = filter_calls();
	if (ret)
		return ret;
	*ret_what = "dropping capabilities";
	return drop_capabilities();
}
