//! Child processes that never outlive their owner.
//!
//! They are ended by pid when the owner is dropped, and by the kernel when this process dies in whatever way.

use std::{
    fs::{self, File},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        LazyLock, Mutex,
        mpsc::{self, Sender},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// A running program, with its output in a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    output: PathBuf,
}

type Job = (Command, Sender<std::io::Result<Child>>);

/// The kernel's "die with your parent" means the parent *thread*, so one that never ends starts them all.
static STARTER: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
    let (sender, receiver) = mpsc::channel::<Job>();
    std::thread::Builder::new()
        .name("starter".into())
        .spawn(move || {
            for (mut command, reply) in receiver {
                let _ = reply.send(command.spawn()); // whoever asked may have given up
            }
        })
        .expect("a thread");
    Mutex::new(sender)
});

impl Process {
    /// Starts a program whose standard output and error are appended to `output`.
    pub fn start(mut command: Command, output: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(output).context("the output file")?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        die_with_parent(&mut command);
        let program = command.get_program().to_owned();
        let (sender, receiver) = mpsc::channel();
        STARTER.lock().expect("no panic while sending").send((command, sender)).context("the starter thread")?;
        let child = receiver.recv()?.with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { child, output: output.to_owned() })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far; bytes that are not UTF-8 are replaced.
    pub fn output(&self) -> String {
        fs::read(&self.output).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// How it ended; none while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap_or(Some(ExitStatus::from_raw(0)))
    }

    /// Waits for its end, at most this long.
    pub fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + within;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() > end {
                return None;
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// Asks it to end (SIGTERM), and ends it if it hasn't within the time.
    pub fn terminate(&mut self, within: Duration) -> Option<ExitStatus> {
        if self.ended().is_none() {
            signal(self.pid(), libc::SIGTERM);
        }
        self.wait(within).or_else(|| {
            let _ = self.child.kill();
            self.child.wait().ok()
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[expect(unsafe_code, reason = "only the child itself can ask for it, between fork and exec")]
fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure makes one system call and touches no memory of the parent.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

#[expect(unsafe_code, reason = "the standard library sends SIGKILL only")]
fn signal(pid: u32, signal: libc::c_int) {
    // SAFETY: a plain system call; the child has not been waited for, so the pid is still its own.
    unsafe {
        libc::kill(pid.cast_signed(), signal);
    }
}

/// Waits for Ctrl-C, SIGTERM or the end of the terminal.
pub async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).expect("signals can be listened for");
    let mut interrupt = listen(SignalKind::interrupt());
    let mut terminate = listen(SignalKind::terminate());
    let mut hangup = listen(SignalKind::hangup());
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}
