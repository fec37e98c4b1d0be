//! [`StopSignal`]: a signal of Linux, in each spelling that Docker takes.

use std::fmt;
use std::str::FromStr;

use nix::sys::signal::Signal;

/// The real-time signals as Docker counts them: the first that glibc leaves to programs, and the
/// last one of Linux. musl keeps one more for itself, so its `SIGRTMIN` is 35.
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

/// The signal that asks the workload to stop. It can be a real-time signal, which
/// [`Signal`] cannot be.
///
/// `Display` writes the full name, for example `SIGTERM` or `SIGRTMIN+3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StopSignal(u8);

/// A text that is not a signal.
#[derive(Debug, thiserror::Error)]
#[error("unknown signal")]
pub(crate) struct UnknownSignal;

impl StopSignal {
    /// Returns the number, from 1 to 64.
    pub(crate) fn number(self) -> u8 {
        self.0
    }
}

impl From<Signal> for StopSignal {
    fn from(signal: Signal) -> Self {
        // Linux has 64 signals, so the number always fits.
        Self(u8::try_from(signal as i32).unwrap_or(u8::MAX))
    }
}

impl FromStr for StopSignal {
    type Err = UnknownSignal;

    /// Parses a name with or without `SIG` and in any case, or a number.
    fn from_str(text: &str) -> Result<Self, UnknownSignal> {
        if let Some(number) = digits(text) {
            return (1..=RTMAX).contains(&number).then_some(Self(number)).ok_or(UnknownSignal);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let offset = |sign, name: &str| match name {
            "" => Some(0),
            name => {
                name.strip_prefix(sign).and_then(digits).filter(|offset| *offset <= RTMAX - RTMIN)
            }
        };
        if let Some(rest) = name.strip_prefix("RTMIN") {
            return offset('+', rest).map(|offset| Self(RTMIN + offset)).ok_or(UnknownSignal);
        }
        if let Some(rest) = name.strip_prefix("RTMAX") {
            return offset('-', rest).map(|offset| Self(RTMAX - offset)).ok_or(UnknownSignal);
        }
        // Older names of three signals (signal(7)).
        let name = match name {
            "CLD" => "CHLD",
            "IOT" => "ABRT",
            "POLL" => "IO",
            name => name,
        };
        Signal::from_str(&format!("SIG{name}")).map(Self::from).map_err(|_unknown| UnknownSignal)
    }
}

/// Parses a number that has digits only, while `u8::from_str` also takes a sign.
fn digits(text: &str) -> Option<u8> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Ok(signal) = Signal::try_from(i32::from(self.0)) {
            return f.write_str(signal.as_str());
        }
        // The middle is where bash and `kill -l` change from the one form to the other.
        match self.0 {
            RTMIN => f.write_str("SIGRTMIN"),
            RTMAX => f.write_str("SIGRTMAX"),
            number if number < RTMIN => write!(f, "{number}"),
            number if number <= RTMIN + 15 => write!(f, "SIGRTMIN+{}", number - RTMIN),
            number => write!(f, "SIGRTMAX-{}", RTMAX - number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_spelling_of_docker_is_a_signal() {
        for (text, number, name) in [
            ("SIGTERM", 15, "SIGTERM"),
            ("TERM", 15, "SIGTERM"),
            ("term", 15, "SIGTERM"),
            ("SigTerm", 15, "SIGTERM"),
            ("15", 15, "SIGTERM"),
            ("015", 15, "SIGTERM"),
            ("9", 9, "SIGKILL"),
            ("SIGWINCH", 28, "SIGWINCH"),
            ("SIGIO", 29, "SIGIO"),
            ("SIGPOLL", 29, "SIGIO"),
            ("cld", 17, "SIGCHLD"),
            ("IOT", 6, "SIGABRT"),
            ("SIGRTMIN+3", 37, "SIGRTMIN+3"),
            ("rtmin+3", 37, "SIGRTMIN+3"),
            ("37", 37, "SIGRTMIN+3"),
            ("SIGRTMIN", 34, "SIGRTMIN"),
            ("RTMIN+0", 34, "SIGRTMIN"),
            ("SIGRTMIN+15", 49, "SIGRTMIN+15"),
            ("SIGRTMIN+16", 50, "SIGRTMAX-14"),
            ("SIGRTMAX-14", 50, "SIGRTMAX-14"),
            ("SIGRTMIN+30", 64, "SIGRTMAX"),
            ("SIGRTMAX", 64, "SIGRTMAX"),
            ("sigrtmax-30", 34, "SIGRTMIN"),
            ("32", 32, "32"),
        ] {
            let signal: StopSignal = text.parse().unwrap_or_else(|_| panic!("{text}"));
            assert_eq!((signal.number(), signal.to_string().as_str()), (number, name), "{text}");
        }
    }

    #[test]
    fn text_that_is_no_signal_is_refused() {
        for text in [
            "",
            "SIG",
            "SIGMAYBE",
            "0",
            "65",
            "256",
            "-15",
            "+15",
            " 15",
            "TERM ",
            "SIGSIGTERM",
            "SIGRTMIN+31",
            "SIGRTMAX-31",
            "SIGRTMIN-1",
            "SIGRTMAX+1",
            "SIGRTMIN+",
            "SIGRTMIN++3",
            "SIGRTMIN3",
            "SIGRTMIN+256",
            "SIGTERM\0",
        ] {
            assert!(text.parse::<StopSignal>().is_err(), "{text}");
        }
    }

    #[test]
    fn name_of_each_signal_is_that_signal() {
        for number in 1..=64 {
            assert_eq!(StopSignal(number).to_string().parse::<StopSignal>().unwrap().0, number);
        }
    }
}
