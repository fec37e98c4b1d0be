//! Validates the messages of clients, and completes a process by what the workload has.

use a3s_box_proto::control::{EnvironmentVariable, Rlimit, Workload};
use a3s_box_proto::process::{
    AttachRequest, EnvironmentMode, Failed, OnDisconnect, RunRequest, Start, TerminalSize,
    attach_request, run_request,
};

use super::failure::invalid;
use super::output::CHUNK_BYTES;
use crate::executable::DEFAULT_PATH;

/// Maximum length of an id in bytes.
const ID_BYTES: usize = 64;

/// Highest signal number of Linux (`_NSIG`).
const LAST_SIGNAL: u32 = 64;

/// Type of a terminal whose environment has no TERM, the same as Docker's.
const DEFAULT_TERM: &str = "xterm";

/// A valid request for a process.
#[derive(Debug)]
pub(super) struct Wanted {
    /// The id, or `None` if the client leaves the choice to the guest program.
    pub(super) id: Option<String>,
    /// The complete process, in the form of a workload.
    pub(super) process: Workload,
    pub(super) terminal: Option<TerminalSize>,
    pub(super) has_stdin: bool,
    /// Milliseconds until the process is killed.
    pub(super) deadline_ms: Option<u64>,
    pub(super) keep: bool,
}

/// A message of a client after the first one of its stream.
#[derive(Debug)]
pub(super) enum Input {
    Bytes(Vec<u8>),
    Close,
    Resize(TerminalSize),
    Signal(i32),
}

/// A stream of requests, whose messages after the first are [`Input`].
pub(super) trait Request {
    /// Returns the input, or the failure of a message that is none.
    fn into_input(self) -> Result<Input, Failed>;
}

impl Request for RunRequest {
    fn into_input(self) -> Result<Input, Failed> {
        use run_request::Message;
        match self.message {
            Some(Message::Stdin(bytes)) => stdin(bytes),
            Some(Message::CloseStdin(_)) => Ok(Input::Close),
            Some(Message::Resize(size)) => valid_size(size).map(Input::Resize),
            Some(Message::Signal(number)) => signal(number).map(Input::Signal),
            Some(Message::Start(_)) => Err(invalid("`start` is not the first message")),
            None => Err(invalid("a message of the stream is empty, or of an unknown kind")),
        }
    }
}

impl Request for AttachRequest {
    fn into_input(self) -> Result<Input, Failed> {
        use attach_request::Message;
        match self.message {
            Some(Message::Stdin(bytes)) => stdin(bytes),
            Some(Message::CloseStdin(_)) => Ok(Input::Close),
            Some(Message::Resize(size)) => valid_size(size).map(Input::Resize),
            Some(Message::Signal(number)) => signal(number).map(Input::Signal),
            Some(Message::Attach(_)) => Err(invalid("`attach` is not the first message")),
            None => Err(invalid("a message of the stream is empty, or of an unknown kind")),
        }
    }
}

fn stdin(bytes: Vec<u8>) -> Result<Input, Failed> {
    if bytes.len() > CHUNK_BYTES {
        let found = bytes.len();
        return Err(invalid(format!("`stdin`: {found} bytes, expected at most {CHUNK_BYTES}")));
    }
    Ok(Input::Bytes(bytes))
}

/// Returns the number of a signal for `kill(2)`.
pub(super) fn signal(number: u32) -> Result<i32, Failed> {
    match i32::try_from(number) {
        // Signal 0 sends nothing, so it is refused.
        Ok(valid) if (1..=LAST_SIGNAL).contains(&number) => Ok(valid),
        _ => Err(invalid(format!("signal {number}, expected 1 to {LAST_SIGNAL}"))),
    }
}

/// Returns the size of a terminal if it is valid.
pub(super) fn valid_size(size: TerminalSize) -> Result<TerminalSize, Failed> {
    let range = 1..=u32::from(u16::MAX);
    if range.contains(&size.rows) && range.contains(&size.columns) {
        return Ok(size);
    }
    let TerminalSize { rows, columns } = size;
    Err(invalid(format!("terminal of {rows} rows and {columns} columns, expected 1 to 65535")))
}

/// Validates the first message of `Run`. Fields that are empty are those of `workload`.
pub(super) fn wanted(start: Start, workload: &Workload) -> Result<Wanted, Failed> {
    let id = if start.id.is_empty() { None } else { Some(valid_id(&start.id)?.to_owned()) };
    let keep = match OnDisconnect::try_from(start.on_disconnect) {
        Ok(OnDisconnect::Unspecified | OnDisconnect::Kill) => false,
        Ok(OnDisconnect::Keep) => true,
        Err(unknown) => return Err(invalid(format!("`on_disconnect`: unknown value {unknown}"))),
    };
    let terminal = start.terminal.map(valid_size).transpose()?;
    let or_else =
        |own: String, default: &String| if own.is_empty() { default.clone() } else { own };
    let rlimits = if start.rlimits.is_empty() {
        workload.rlimits.clone()
    } else {
        let convert = |it: a3s_box_proto::process::ResourceLimit| Rlimit {
            resource: it.resource,
            soft: it.soft,
            hard: it.hard,
        };
        start.rlimits.into_iter().map(convert).collect()
    };
    let mut env = match EnvironmentMode::try_from(start.env_mode) {
        Ok(EnvironmentMode::Unspecified | EnvironmentMode::Add) => workload.env.clone(),
        Ok(EnvironmentMode::Replace) => Vec::new(),
        Err(unknown) => return Err(invalid(format!("`env_mode`: unknown value {unknown}"))),
    };
    for variable in start.env {
        if variable.name.is_empty() || variable.name.contains('=') {
            // The error has no value of a variable, which can be secret.
            return Err(invalid("`env`: found a name that is empty or has `=`"));
        }
        set(&mut env, variable.name, variable.value);
    }
    if terminal.is_some() && env.iter().all(|variable| variable.name != "TERM") {
        set(&mut env, "TERM".to_owned(), DEFAULT_TERM.to_owned());
    }
    Ok(Wanted {
        id,
        process: Workload {
            args: start.args,
            env,
            cwd: or_else(start.cwd, &workload.cwd),
            user: or_else(start.user, &workload.user),
            rlimits,
        },
        terminal,
        has_stdin: start.stdin,
        deadline_ms: (start.deadline_ms != 0).then_some(start.deadline_ms),
        keep,
    })
}

/// Sets a variable, and replaces it if it is there.
fn set(env: &mut Vec<EnvironmentVariable>, name: String, value: String) {
    match env.iter_mut().find(|variable| variable.name == name) {
        Some(variable) => variable.value = value,
        None => env.push(EnvironmentVariable { name, value }),
    }
}

/// Returns the id if it is valid. It occurs in logs and on command lines, so it has no spaces,
/// controls or slashes.
pub(super) fn valid_id(id: &str) -> Result<&str, Failed> {
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if (1..=ID_BYTES).contains(&id.len()) && id.bytes().all(is_valid) {
        return Ok(id);
    }
    Err(invalid(format!("`id`: expected 1 to {ID_BYTES} characters of A-Z a-z 0-9 _ . -")))
}

/// Returns what processes inherit in a box without a workload.
pub(crate) fn without_workload() -> Workload {
    let path = EnvironmentVariable { name: "PATH".into(), value: DEFAULT_PATH.into() };
    Workload { env: vec![path], ..Workload::default() }
}

#[cfg(test)]
mod tests {
    use a3s_box_proto::process::{FailureKind, Variable};

    use super::*;

    fn variable(name: &str, value: &str) -> Variable {
        Variable { name: name.into(), value: value.into() }
    }

    fn workload() -> Workload {
        Workload {
            args: vec!["server".into()],
            env: [("PATH", "/bin"), ("A", "1")]
                .map(|(name, value)| EnvironmentVariable { name: name.into(), value: value.into() })
                .into(),
            cwd: "/srv".into(),
            user: "daemon".into(),
            rlimits: vec![Rlimit { resource: 7, soft: 1, hard: 2 }],
        }
    }

    fn texts(wanted: &Wanted) -> Vec<String> {
        let env = wanted.process.env.iter();
        env.map(|variable| format!("{}={}", variable.name, variable.value)).collect()
    }

    #[test]
    fn empty_fields_are_those_of_the_workload() {
        let start = Start { args: vec!["x".into()], ..Start::default() };
        let wanted = wanted(start, &workload()).unwrap();
        assert_eq!(wanted.process, Workload { args: vec!["x".into()], ..workload() });
        assert_eq!((wanted.id, wanted.keep, wanted.deadline_ms), (None, false, None));
    }

    #[test]
    fn variables_are_added_or_are_all_there_is() {
        let env = vec![variable("A", "2"), variable("B", "3"), variable("B", "4")];
        let add = Start { env: env.clone(), ..Start::default() };
        let wanted_env = |start| texts(&wanted(start, &workload()).unwrap());
        assert_eq!(wanted_env(add.clone()), ["PATH=/bin", "A=2", "B=4"]);
        let replace = Start { env_mode: EnvironmentMode::Replace.into(), ..add.clone() };
        assert_eq!(wanted_env(replace), ["A=2", "B=4"]);
        let size = TerminalSize { rows: 2, columns: 3 };
        let terminal = Start { terminal: Some(size), ..add };
        assert_eq!(wanted_env(terminal), ["PATH=/bin", "A=2", "B=4", "TERM=xterm"]);
    }

    #[test]
    fn invalid_values_are_refused_without_secrets() {
        let size = |rows, columns| Some(TerminalSize { rows, columns });
        let secret = vec![variable("A=B", "s3cret")];
        for start in [
            Start { id: "a b".into(), ..Start::default() },
            Start { id: "a".repeat(65), ..Start::default() },
            Start { on_disconnect: 3, ..Start::default() },
            Start { env_mode: 3, ..Start::default() },
            Start { env: secret, ..Start::default() },
            Start { env: vec![variable("", "s3cret")], ..Start::default() },
            Start { terminal: size(0, 1), ..Start::default() },
            Start { terminal: size(1, 65536), ..Start::default() },
        ] {
            let failure = wanted(start.clone(), &workload()).unwrap_err();
            assert_eq!(failure.kind(), FailureKind::InvalidRequest, "{start:?}");
            assert!(!failure.message.contains("s3cret"), "{}", failure.message);
        }
        for number in [0, 65, u32::MAX] {
            assert!(signal(number).is_err(), "{number}");
        }
        assert_eq!(signal(64), Ok(64));
    }
}
