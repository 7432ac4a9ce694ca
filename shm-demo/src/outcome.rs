//! How a run ended, as far as that is the same for every demo.

use crate::{Result, print, print_json};
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// How a run came to its end.
pub(crate) enum End {
    /// All workers have left.
    Done,
    /// It was no use to go on; the failures say why.
    GivenUp,
    /// A signal, by number and name.
    Signal(u8, &'static str),
}

/// The part of a report that every demo has; `--help` says what the fields mean.
#[derive(Serialize)]
pub(crate) struct Outcome {
    pub(crate) outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) signal: Option<&'static str>,
    #[serde(skip)]
    pub(crate) signal_number: u8,
    pub(crate) failures: Vec<String>,
    pub(crate) path: PathBuf,
    pub(crate) kills: u32,
    pub(crate) kills_asked: u32,
    pub(crate) kills_from_outside: u64,
    pub(crate) seconds: f64,
}

impl Outcome {
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self.outcome {
            _ if self.signal_number != 0 => ExitCode::from(128 + self.signal_number),
            "held" => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }

    /// The kills, in words.
    pub(crate) fn kills(&self) -> String {
        let outside = match self.kills_from_outside {
            0 => String::new(),
            kills => format!(", and {kills} from outside"),
        };
        format!("{} of {}{outside}", self.kills, self.kills_asked)
    }
}

/// What a run has to say at its end, of which its outcome is a part.
pub(crate) trait Account: Serialize + Sized {
    /// What a good end has shown.
    const HELD: &'static str;

    fn outcome(&self) -> &Outcome;

    /// What it says for people, besides how it ended: names, and what there is to each.
    fn lines(&self) -> [(&'static str, String); 4];

    fn print(&self, json: bool) -> Result<()> {
        let outcome = self.outcome();
        for failure in &outcome.failures {
            eprintln!("shm-demo: FAILED: {failure}");
        }
        if json {
            return print_json(self);
        }
        let end = match (outcome.outcome, outcome.signal) {
            ("held", _) => Self::HELD,
            (_, Some(signal)) => &format!("ended by {signal}, nothing is proved; cleaned up"),
            _ => "see the lines that say FAILED; cleaned up",
        };
        let mut text = String::new();
        for (name, what) in self.lines().iter().chain([&(outcome.outcome, end.to_string())]) {
            writeln!(text, "{name:<13} {what}").expect("a String takes anything");
        }
        print(&text)
    }
}
