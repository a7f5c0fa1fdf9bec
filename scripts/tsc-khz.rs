//! Prints how fast this CPU's time stamp counter runs, in kHz.
//!
//! Under plain emulation the machine's counter is the host's. Left to measure it against an emulated timer while the
//! host is busy, the machine can be wrong by a factor of ten, and its time-outs with it.

use std::{
    arch::x86_64::_rdtsc,
    thread::sleep,
    time::{Duration, Instant},
};

/// One moment on both clocks: the closest of many pairs, as the process may be interrupted between the two.
fn now() -> (Instant, u64) {
    let pair = || {
        // SAFETY: every x86-64 CPU has this instruction, and it changes nothing.
        let (before, at, after) = unsafe { (_rdtsc(), Instant::now(), _rdtsc()) };
        (after - before, at, before)
    };
    let best = (0..100).map(|_| pair()).min_by_key(|pair| pair.0);
    best.map(|(_, at, ticks)| (at, ticks))
        .expect("there are a hundred")
}

fn main() {
    let (start, ticks) = now();
    sleep(Duration::from_millis(200));
    let (end, more) = now();
    println!(
        "{}",
        (more - ticks) as u128 * 1_000_000 / end.duration_since(start).as_nanos()
    );
}
