//! [`Command`]: a process to start in a box.

use std::time::Duration;

use a3s_box_proto::process::{
    self as proto, EnvironmentMode, OnDisconnect, ResourceLimit, Start, Variable,
};

/// A process to start in a box. Its environment, user, working directory and limits are those of
/// the workload, unless a method changes them.
///
/// ```
/// use a3s_box_runtime::exec::Command;
///
/// let mut command = Command::new("psql");
/// command.args(["-c", "SELECT 1"]).env("PGUSER", "demo").user("postgres").current_dir("/tmp");
/// ```
#[derive(Clone, Debug)]
pub struct Command {
    start: Start,
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Number of rows, at least 1.
    pub rows: u16,
    /// Number of columns, at least 1.
    pub columns: u16,
}

impl Command {
    /// Makes a command without arguments and without standard input. A program without a slash is
    /// looked up in the PATH of the process.
    pub fn new(program: impl Into<String>) -> Self {
        let start = Start {
            args: vec![program.into()],
            env_mode: EnvironmentMode::Add.into(),
            on_disconnect: OnDisconnect::Kill.into(),
            ..Start::default()
        };
        Self { start }
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: impl Into<String>) -> &mut Self {
        self.start.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args<I>(&mut self, args: I) -> &mut Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.start.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of the environment.
    pub fn env(&mut self, name: impl Into<String>, value: impl Into<String>) -> &mut Self {
        self.start.env.push(Variable { name: name.into(), value: value.into() });
        self
    }

    /// Removes all variables, also those of the workload. The guest adds HOME if it is not set
    /// afterwards.
    pub fn env_clear(&mut self) -> &mut Self {
        self.start.env.clear();
        self.start.env_mode = EnvironmentMode::Replace.into();
        self
    }

    /// Sets the working directory, an absolute path of a directory that exists in the box.
    pub fn current_dir(&mut self, path: impl Into<String>) -> &mut Self {
        self.start.cwd = path.into();
        self
    }

    /// Sets the user: `user[:group]`, names or numbers.
    pub fn user(&mut self, user: impl Into<String>) -> &mut Self {
        self.start.user = user.into();
        self
    }

    /// Sets whether the process has a standard input, which [`Process::stdin`] writes to. Without
    /// one it is `/dev/null`.
    ///
    /// [`Process::stdin`]: super::Process::stdin
    pub fn stdin(&mut self, has_stdin: bool) -> &mut Self {
        self.start.stdin = has_stdin;
        self
    }

    /// Gives the process a terminal. Its output is then all standard output, and it has a standard
    /// input.
    pub fn terminal(&mut self, size: TerminalSize) -> &mut Self {
        self.start.terminal = Some(size.into());
        self
    }

    /// Sets the id. If a process of the box has this id already, it is not started again: the
    /// returned process is attached to it. A call that failed because of a lost connection can
    /// therefore be repeated.
    pub fn id(&mut self, id: impl Into<String>) -> &mut Self {
        self.start.id = id.into();
        self
    }

    /// Sets the time after which the guest kills the process and all its descendants. Less than a
    /// millisecond counts as one.
    pub fn deadline(&mut self, time: Duration) -> &mut Self {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.start.deadline_ms = ms.max(1);
        self
    }

    /// Sets a resource limit (`setrlimit(2)`), in place of all limits of the workload.
    pub fn rlimit(&mut self, resource: u32, soft: u64, hard: u64) -> &mut Self {
        self.start.rlimits.push(ResourceLimit { resource, soft, hard });
        self
    }

    /// Lets the process go on after the connection to it is lost, however that happens. Without
    /// it, such a process is killed with all its descendants.
    pub fn keep(&mut self) -> &mut Self {
        self.start.on_disconnect = OnDisconnect::Keep.into();
        self
    }

    /// Returns the message that starts the process.
    pub(super) fn to_start(&self) -> Start {
        self.start.clone()
    }

    /// Returns whether the process can be written to.
    pub(super) fn has_stdin(&self) -> bool {
        self.start.stdin || self.start.terminal.is_some()
    }
}

impl From<TerminalSize> for proto::TerminalSize {
    fn from(size: TerminalSize) -> Self {
        Self { rows: size.rows.into(), columns: size.columns.into() }
    }
}
