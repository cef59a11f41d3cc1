//! What is wrong outside of documents: a flag, a file, a port, or something of ours.
//!
//! Everything below the command line returns a [`Complaint`]. The command line alone turns it into text and an exit
//! code.

use std::fmt;

use crate::diagnostic::Report;

/// Whose fault something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The input is wrong: whoever gave it can mend it.
    Input,
    /// We failed, or something that we need.
    Us,
}

/// Something that is wrong, with whose fault it is and how to fix it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// What is wrong.
    pub message: String,
    /// How to fix it.
    pub hint: Option<String>,
    /// Whose fault it is.
    pub blame: Blame,
}

impl Complaint {
    /// Complains of the input. What follows a line break and `hint: ` in the text is the hint.
    pub fn input(text: impl fmt::Display) -> Self {
        Complaint::of(Blame::Input, &text.to_string())
    }

    /// Complains of ourselves. What follows a line break and `hint: ` in the text is the hint.
    pub fn us(text: impl fmt::Display) -> Self {
        Complaint::of(Blame::Us, &text.to_string())
    }

    /// Refuses for it, behind what was to be said before it came up.
    pub fn behind(self, notes: Vec<String>) -> Refusal {
        Refusal::Behind(notes, self)
    }

    fn of(blame: Blame, text: &str) -> Self {
        let (message, hint) = match text.split_once("\nhint: ") {
            Some((message, hint)) => (message, Some(hint.to_owned())),
            None => (text, None),
        };
        Complaint {
            message: message.to_owned(),
            hint,
            blame,
        }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Why nothing is done: either something around the rules is wrong, or the rules are.
#[derive(Debug)]
pub enum Refusal {
    /// Something around the rules.
    Complaint(Complaint),
    /// The rules, at these places.
    Rules(Report),
    /// Something around rules that were read, behind what was to be said before it came up.
    Behind(Vec<String>, Complaint),
}

impl Refusal {
    /// Whose fault it is.
    pub fn blame(&self) -> Blame {
        match self {
            Refusal::Complaint(complaint) | Refusal::Behind(_, complaint) => complaint.blame,
            Refusal::Rules(_) => Blame::Input,
        }
    }
}

impl Refusal {
    /// The same, behind the warnings of rules that were read.
    #[must_use]
    pub fn behind(self, warnings: &Report) -> Self {
        match self {
            Refusal::Complaint(complaint) => complaint.behind(warnings.told()),
            Refusal::Rules(report) => {
                let all = warnings.0.iter().cloned().chain(report.0);
                Refusal::Rules(Report(all.collect()))
            }
            Refusal::Behind(notes, complaint) => {
                Refusal::Behind([warnings.told(), notes].concat(), complaint)
            }
        }
    }
}

impl From<Complaint> for Refusal {
    fn from(complaint: Complaint) -> Self {
        Refusal::Complaint(complaint)
    }
}

impl From<Report> for Refusal {
    fn from(report: Report) -> Self {
        Refusal::Rules(report)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Complaint(complaint) => complaint.fmt(f),
            Refusal::Rules(report) => f.write_str(report.to_string().trim_end()),
            Refusal::Behind(notes, complaint) => {
                for note in notes {
                    writeln!(f, "{note}")?;
                }
                complaint.fmt(f)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_stands_on_a_line_of_its_own() {
        let text = "`--port 80` names no port to listen on\nhint: write `--port 80=10080`";
        let complaint = Complaint::input(text);
        assert_eq!(complaint.message, "`--port 80` names no port to listen on");
        assert_eq!(complaint.hint.as_deref(), Some("write `--port 80=10080`"));
        assert_eq!(complaint.to_string(), format!("error: {text}"));
        assert_eq!(Complaint::us("broken").to_string(), "error: broken");
    }
}
