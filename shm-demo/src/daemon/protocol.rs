//! What clients and the daemon say to each other: a line each way.

use std::fmt;
use std::time::Duration;

/// How long a line can be, in bytes, without its end.
pub(crate) const MAX_LINE: usize = 128;

/// How long the name of a lock can be, in bytes.
pub(crate) const MAX_NAME: usize = 40;

/// The longest timeout: a day.
const MAX_MILLISECONDS: u64 = 86_400_000;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Lock(String),
    Try(String),
    With(Duration, String),
    Unlock(String),
    Status,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Done,
    /// This process held the lock before, and did not unlock it.
    Inherited(u32),
    Busy,
    TimedOut,
    /// Lines, and how many locks they tell of.
    Status(Vec<String>),
    Refused(String),
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => writeln!(f, "OK"),
            Self::Inherited(pid) => writeln!(f, "OK INHERITED {pid}"),
            Self::Busy => writeln!(f, "BUSY"),
            Self::TimedOut => writeln!(f, "TIMEOUT"),
            Self::Status(lines) => {
                lines.iter().try_for_each(|line| writeln!(f, "{line}"))?;
                writeln!(f, "OK {}", lines.len())
            }
            // A line for a line, whatever an error has to say.
            Self::Refused(why) => writeln!(f, "ERR {}", why.replace(char::is_control, " ")),
        }
    }
}

/// Whether a line of a reply is the last one of it.
pub(crate) fn is_last(line: &str) -> bool {
    !line.starts_with("LOCK ")
}

impl Request {
    /// What `line` asks for, or what is wrong with it.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, String> {
        let Ok(line) = str::from_utf8(line) else {
            return Err("the line is no UTF-8; send text".into());
        };
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let Some((command, words)) = words.split_first() else {
            return Err(format!("the line is empty; send one of {COMMANDS}"));
        };
        match (command.to_ascii_uppercase().as_str(), words) {
            ("LOCK", [name]) => Ok(Self::Lock(self::name(name)?)),
            ("TRY", [name]) => Ok(Self::Try(self::name(name)?)),
            ("UNLOCK", [name]) => Ok(Self::Unlock(self::name(name)?)),
            ("WITH", [time, name]) => Ok(Self::With(milliseconds(time)?, self::name(name)?)),
            ("STATUS", []) => Ok(Self::Status),
            (command @ ("LOCK" | "TRY" | "UNLOCK"), words) => {
                Err(format!("{command} takes one word, NAME, and {} came", words.len()))
            }
            ("WITH", words) => {
                Err(format!("WITH takes two words, MILLISECONDS NAME, and {} came", words.len()))
            }
            ("STATUS", words) => Err(format!("STATUS takes no word, and {} came", words.len())),
            _ => Err(format!("{:?} is no command; send one of {COMMANDS}", short(command))),
        }
    }
}

const COMMANDS: &str = "LOCK NAME, TRY NAME, WITH MILLISECONDS NAME, UNLOCK NAME, STATUS";

/// So much of a word as is worth repeating.
fn short(word: &str) -> String {
    word.chars().take(20).collect()
}

/// Whether a lock can be asked for by this name.
pub(crate) fn is_name(word: &str) -> bool {
    name(word).is_ok()
}

fn name(word: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if !word.bytes().all(fits) {
        return Err(format!(
            "{:?} is no name for a lock: letters, digits, dots, dashes and underscores are",
            short(word)
        ));
    }
    if word.len() > MAX_NAME {
        return Err(format!(
            "the name has {} bytes, and {MAX_NAME} are the most; choose another",
            word.len()
        ));
    }
    Ok(word.into())
}

fn milliseconds(word: &str) -> Result<Duration, String> {
    match word.parse() {
        Ok(time) if time <= MAX_MILLISECONDS => Ok(Duration::from_millis(time)),
        _ => Err(format!(
            "{:?} is no timeout: it is a number of milliseconds, {MAX_MILLISECONDS} at most",
            short(word)
        )),
    }
}

/// What has come and was not yet looked at.
#[derive(Default)]
pub(crate) struct Lines {
    bytes: Vec<u8>,
    /// Whether the rest of the line is to be thrown away.
    skipping: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Whole(Vec<u8>),
    TooLong,
}

impl Line {
    pub(crate) fn request(self) -> Result<Request, String> {
        match self {
            Self::Whole(line) => Request::parse(&line),
            Self::TooLong => Err(format!(
                "the line has more than {MAX_LINE} bytes; it is thrown away up to its end"
            )),
        }
    }
}

impl Lines {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// How many bytes are still to be looked at.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The next line, if all of it has come, or too much of it.
    pub(crate) fn next(&mut self) -> Option<Line> {
        while let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
            let rest = self.bytes.split_off(end + 1);
            let mut line = std::mem::replace(&mut self.bytes, rest);
            line.pop();
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            let is_long = line.len() > MAX_LINE;
            return Some(if is_long { Line::TooLong } else { Line::Whole(line) });
        }
        if self.skipping {
            self.bytes.clear();
        } else if self.bytes.len() > MAX_LINE {
            self.bytes.clear();
            self.skipping = true;
            return Some(Line::TooLong);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Request, String> {
        Request::parse(line.as_bytes())
    }

    #[test]
    fn each_command_is_understood() {
        assert_eq!(parse("LOCK a"), Ok(Request::Lock("a".into())));
        assert_eq!(parse(" try\ta.b-c_1 \r"), Ok(Request::Try("a.b-c_1".into())));
        assert_eq!(parse("Unlock a"), Ok(Request::Unlock("a".into())));
        assert_eq!(parse("STATUS"), Ok(Request::Status));
        let day = Duration::from_secs(86_400);
        assert_eq!(parse("WITH 86400000 a"), Ok(Request::With(day, "a".into())));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let longest = "n".repeat(MAX_NAME);
        assert!(parse(&format!("LOCK {longest}")).is_ok());
        for (line, what) in [
            ("", "the line is empty; send one of LOCK NAME"),
            ("  ", "the line is empty"),
            ("LOCK", "LOCK takes one word, NAME, and 0 came"),
            ("lock a b", "LOCK takes one word, NAME, and 2 came"),
            ("WITH a", "WITH takes two words"),
            ("WITH x a", "\"x\" is no timeout"),
            ("WITH -1 a", "\"-1\" is no timeout"),
            ("WITH 86400001 a", "86400000 at most"),
            ("STATUS a", "STATUS takes no word"),
            ("LOCK a/b", "\"a/b\" is no name"),
            ("LOCK \u{1}", "\"\\u{1}\" is no name"),
            ("FLY", "\"FLY\" is no command"),
            (&format!("LOCK {longest}n"), "the name has 41 bytes, and 40 are the most"),
            (&"x".repeat(100), "\"xxxxxxxxxxxxxxxxxxxx\" is no command"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(what), "{line:?}: {error}");
        }
        assert!(Request::parse(b"LOCK \xff").is_err_and(|error| error.contains("UTF-8")));
    }

    #[test]
    fn a_line_may_come_in_any_pieces() {
        let text = b"LOCK a\nTRY b\r\n\nSTATUS\nUNLO";
        for size in 1..text.len() {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            for piece in text.chunks(size) {
                lines.push(piece);
                found.extend(std::iter::from_fn(|| lines.next()));
            }
            let expected = ["LOCK a", "TRY b\r", "", "STATUS"];
            let expected = expected.map(|line| Line::Whole(line.into()));
            assert_eq!(found, expected, "in pieces of {size}");
            assert_eq!(lines.len(), 4);
        }
    }

    #[test]
    fn a_long_line_is_refused_once_and_kept_nowhere() {
        let text = format!("{}\n{}\nTRY a\n", "x".repeat(MAX_LINE), "x".repeat(1_000_000));
        for size in [7, 4096, text.len()] {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            for piece in text.as_bytes().chunks(size) {
                lines.push(piece);
                found.extend(std::iter::from_fn(|| lines.next()));
                assert!(lines.len() <= MAX_LINE);
            }
            let whole = |line: &str| Line::Whole(line.into());
            let first = "x".repeat(MAX_LINE);
            assert_eq!(found, [whole(&first), Line::TooLong, whole("TRY a")]);
        }
    }

    #[test]
    fn a_reply_is_one_line_whatever_is_in_it() {
        let said = Reply::Refused("first\nsecond\u{7}".into()).to_string();
        assert_eq!(said, "ERR first second \n");
        let status = Reply::Status(vec!["LOCK name=a".into()]).to_string();
        assert_eq!(status, "LOCK name=a\nOK 1\n");
        assert!(is_last("OK 1") && is_last("ERR no") && !is_last("LOCK name=a"));
    }
}
