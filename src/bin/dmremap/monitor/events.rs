// SPDX-License-Identifier: GPL-2.0

//! What the monitor waits for: events of device-mapper, and signals.

use anyhow::Result;
use rustix::event::{poll, PollFd, PollFlags};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Where device-mapper says that something happened.
const CONTROL: &str = "/dev/mapper/control";

/// Events of device-mapper; `None`: there is no device-mapper yet.
#[derive(Default)]
pub(super) struct Events(Option<File>);

impl Events {
    /// From now on, they count. (Opening does what the ioctl DM_DEV_ARM_POLL does with a file that is open: both remember the
    /// number of the last event, see dm_open() and dev_arm_poll() in drivers/md/dm-ioctl.c.)
    pub(super) fn arm(&mut self) {
        self.0 = File::open(CONTROL).ok();
    }

    /// Whether one came since.
    pub(super) fn came(&self) -> bool {
        let Some(file) = &self.0 else {
            return false;
        };
        let mut waits = [PollFd::new(file, PollFlags::IN)];
        let time = Duration::ZERO.try_into().ok();
        poll(&mut waits, time.as_ref()).is_ok_and(|ready| ready > 0)
    }
}

/// What makes the monitor end: can be read when a signal came.
pub(super) struct Signals(UnixStream);

impl Signals {
    pub(super) fn new() -> Result<Self> {
        let (signals, write) = UnixStream::pair()?;
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
        }
        Ok(Self(signals))
    }

    /// Waits for one, for `time` at most, or for an event of these. Returns whether a signal came.
    pub(super) fn wait(&self, time: Duration, events: Option<&Events>) -> bool {
        let mut waits = vec![PollFd::new(&self.0, PollFlags::IN)];
        if let Some(Events(Some(events))) = events {
            waits.push(PollFd::new(events, PollFlags::IN));
        }
        // A time that is too long for the clock is as long as it can be.
        let time = time.try_into().ok();
        poll(&mut waits, time.as_ref()).is_ok() && !waits[0].revents().is_empty()
    }
}
