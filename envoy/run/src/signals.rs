//! What people ask of a run by signals.

use std::io::{self, IsTerminal as _};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// SIGINT, as Ctrl-C sends it, or a terminal that goes: end at once.
    End,
    /// SIGTERM: let requests finish, then end.
    Drain,
    /// SIGHUP: read the rules again.
    Reload,
    /// SIGUSR1: open the access log again.
    Reopen,
}

/// The signals of a run.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    reopen: Signal,
    /// Standard error was a terminal when the run began.
    in_terminal: bool,
}

impl Signals {
    /// Takes them over, so that none of them ends this process.
    ///
    /// # Errors
    /// When the kernel gives no way to.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
            in_terminal: io::stderr().is_terminal(),
        })
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::End,
            _ = self.terminate.recv() => Asked::Drain,
            _ = self.reopen.recv() => Asked::Reopen,
            // The signal is also how a terminal says that it goes.
            _ = self.hangup.recv() => match self.in_terminal && !io::stderr().is_terminal() {
                true => Asked::End,
                false => Asked::Reload,
            },
        }
    }

    /// Waits until somebody asks to end, in whatever way.
    pub(super) async fn end(&mut self) {
        while !matches!(self.next().await, Asked::End | Asked::Drain) {}
    }
}
