//! Sandboxes: seccomp filters under which the kernel refuses a system call.

use nix::errno::Errno;
use std::process::Command;

/// A system call that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    call: i64,
    error: i32,
}

/// The environment variable that tells a role's process of its sandbox.
const VARIABLE: &str = "HEIRLOCK_TEST_REFUSE";

/// How a process ends that cannot be put into a sandbox.
const NO_SANDBOX: i32 = 77;

/// `AUDIT_ARCH_*` of this machine: system call numbers mean nothing without.
#[cfg(target_arch = "x86_64")]
const ARCH: Option<u32> = Some(0xc000_003e);
#[cfg(target_arch = "aarch64")]
const ARCH: Option<u32> = Some(0xc000_00b7);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCH: Option<u32> = None;

impl Refusal {
    /// `futex_waitv`, as a sandbox that does not know it refuses it.
    pub(crate) const WAITV: Self = Self { call: libc::SYS_futex_waitv, error: libc::EPERM };
    /// `futex_waitv`, as a kernel that does not know it refuses it.
    pub(crate) const WAITV_UNKNOWN: Self =
        Self { call: libc::SYS_futex_waitv, error: libc::ENOSYS };
    /// `get_robust_list`.
    pub(crate) const ROBUST_LIST: Self =
        Self { call: libc::SYS_get_robust_list, error: libc::EPERM };

    /// `io_uring_setup`.
    pub(crate) const IO_URING: Self = Self { call: libc::SYS_io_uring_setup, error: libc::EPERM };

    /// `io_uring_setup`, as a kernel that does not know it refuses it.
    pub(crate) const IO_URING_UNKNOWN: Self =
        Self { call: libc::SYS_io_uring_setup, error: libc::ENOSYS };

    /// `prctl`, as a kernel that does not know what is asked for refuses it.
    pub(crate) const PRCTL: Self = Self { call: libc::SYS_prctl, error: libc::EINVAL };

    /// `membarrier`.
    pub(crate) const MEMBARRIER: Self = Self { call: libc::SYS_membarrier, error: libc::EPERM };

    /// What the kernel says to the call.
    pub(crate) const fn error(&self) -> i32 {
        self.error
    }

    /// Has the process that `command` starts be in this sandbox, too.
    pub(crate) fn impose(&self, command: &mut Command) {
        let before = command.get_envs().find(|(name, _)| *name == VARIABLE);
        let before =
            before.and_then(|(_, value)| value?.to_str().map(|others| format!("{others},")));
        let all = format!("{}{} {}", before.unwrap_or_default(), self.call, self.error);
        command.env(VARIABLE, all);
    }

    /// Skips the test if such sandboxes cannot be had here.
    pub(crate) fn require(&self) {
        let (call, error) = (self.call.to_string(), self.error.to_string());
        let mut command = super::Process::command("probe", &[&call, &error]);
        self.impose(&mut command);
        let status = super::Process::from_command(&mut command).wait();
        match status.code() {
            Some(0) => {}
            Some(NO_SANDBOX) => super::skip("seccomp filters are not to be had"),
            _ => panic!("under a filter that refuses call {call}: {status}"),
        }
    }

    /// Puts the calling thread, and those that it will start, into the sandbox.
    #[allow(unsafe_code)]
    fn install(&self) -> Result<(), Errno> {
        let arch = ARCH.ok_or(Errno::ENOSYS)?;
        let statement = |code, k| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
        let unless = |k, skip| {
            let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
            libc::sock_filter { code, jt: 0, jf: skip, k }
        };
        const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
        let number = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
        let machine = std::mem::offset_of!(libc::seccomp_data, arch) as u32;
        let mut program = [
            statement(LOAD, machine),
            unless(arch, 3),
            statement(LOAD, number),
            unless(self.call as u32, 1),
            statement(RETURN, libc::SECCOMP_RET_ERRNO | self.error as u32),
            statement(RETURN, libc::SECCOMP_RET_ALLOW),
        ];
        nix::sys::prctl::set_no_new_privs()?;
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: the kernel copies the program, which lives until the call is
        // over and has the length given.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        };
        Errno::result(failed).map(drop)
    }
}

/// Enters the sandbox that the environment tells of, if any.
pub(super) fn enter() {
    let Ok(refusals) = std::env::var(VARIABLE) else { return };
    for refusal in refusals.split(',') {
        let (call, error) = refusal.split_once(' ').expect("a call and an error");
        let refusal = Refusal {
            call: call.parse().expect("a system call"),
            error: error.parse().expect("an error"),
        };
        if let Err(error) = refusal.install() {
            eprintln!("cannot install a seccomp filter: {error}");
            std::process::exit(NO_SANDBOX);
        }
    }
}

/// The role of a process that looks whether the call is refused.
#[allow(unsafe_code)]
pub(super) fn probe(args: &[String]) {
    let call: i64 = args[0].parse().expect("a system call");
    let error: i32 = args[1].parse().expect("an error");
    // SAFETY: none of the calls that are refused in tests does anything with
    // these arguments: no such process, no waiters, no such option.
    let result = unsafe { libc::syscall(call, -1, 0, 0, 0, 0) };
    assert_eq!((result, Errno::last_raw()), (-1, error));
}
