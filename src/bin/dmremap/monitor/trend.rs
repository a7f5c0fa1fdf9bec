// SPDX-License-Identifier: GPL-2.0

//! How fast a device gets worse: how many units became bad in each of the last hours, and where that leads.
//!
//! The hours are those of the clock on the wall, so that they go on after a reboot. That clock may jump. Hours that lie ahead
//! are not counted before it is their time, and nothing is ever subtracted.

use serde::{Deserialize, Serialize};

/// Seconds of an hour.
const HOUR: u64 = 3600;

/// Hours of a day.
const DAY: u64 = 24;

/// Hours that are kept: of a week, and one day more.
const KEPT: usize = 8 * DAY as usize;

/// Bad units of a day below which "faster each day" is not worth a word.
const FEW: u64 = 10;

/// The units that became bad: hours since 1970, ascending, and how many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trend(Vec<(u64, u64)>);

/// What is to be expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Forecast {
    /// Units that became bad in the last `hours`.
    new: u64,
    hours: u64,
    /// When no slot is left, at this rate; `None`: not within ten years.
    pub(super) full_in_hours: Option<u64>,
}

impl Trend {
    /// `new` units became bad between `since` and `now`, in seconds since 1970. Nobody knows when: they are spread over it.
    pub(super) fn add(&mut self, new: u64, since: u64, now: u64) {
        let now = now / HOUR;
        let first = (since / HOUR)
            .min(now)
            .max(now.saturating_sub(KEPT as u64 - 1));
        let hours = u128::from(now - first + 1);
        let share = |hour: u128| (u128::from(new) * hour / hours) as u64;
        for hour in 0..hours {
            self.add_to(first + hour as u64, share(hour + 1) - share(hour));
        }
        while self.0.len() > KEPT {
            // The one that is farthest from now.
            let [first, last] = [0, self.0.len() - 1].map(|at| self.0[at].0.abs_diff(now));
            self.0
                .remove(if first >= last { 0 } else { self.0.len() - 1 });
        }
    }

    fn add_to(&mut self, hour: u64, new: u64) {
        match self.0.binary_search_by_key(&hour, |(hour, _)| *hour) {
            _ if new == 0 => (),
            Ok(at) => self.0[at].1 = self.0[at].1.saturating_add(new),
            Err(at) => self.0.insert(at, (hour, new)),
        }
    }

    /// Units that became bad in `hours` that ended `ago` hours before `now`.
    fn count(&self, hours: u64, ago: u64, now: u64) -> u64 {
        let end = (now / HOUR + 1).saturating_sub(ago);
        let range = end.saturating_sub(hours)..end;
        let counted = self.0.iter().filter(|(hour, _)| range.contains(hour));
        counted.fold(0, |sum: u64, (_, new)| sum.saturating_add(*new))
    }

    pub(super) fn last_day(&self, now: u64) -> u64 {
        self.count(DAY, 0, now)
    }

    pub(super) fn last_week(&self, now: u64) -> u64 {
        self.count(7 * DAY, 0, now)
    }

    /// The last three days, the oldest first, if each was worse than the one before.
    pub(super) fn faster_each_day(&self, now: u64) -> Option<[u64; 3]> {
        let days = [2, 1, 0].map(|day| self.count(DAY, day * DAY, now));
        let [first, second, third] = days;
        (0 < first && first < second && second < third && third >= FEW).then_some(days)
    }

    /// `None`: no unit became bad in a week.
    pub(super) fn forecast(&self, free: u64, now: u64) -> Option<Forecast> {
        let days = [(self.last_day(now), DAY), (self.last_week(now), 7 * DAY)];
        let (new, hours) = days.into_iter().find(|(new, _)| *new > 0)?;
        let left = u128::from(free) * u128::from(hours) / u128::from(new);
        let full_in_hours = u64::try_from(left).ok();
        Some(Forecast {
            new,
            hours,
            full_in_hours: full_in_hours.filter(|hours| *hours < 10 * 365 * DAY),
        })
    }
}

/// A time in the larger unit that says it.
fn span(hours: u64) -> String {
    match hours {
        0..72 => format!("{hours} h"),
        _ => format!("{} days", hours / DAY),
    }
}

impl Forecast {
    /// It in words, of a spare that is full already or not. (One of which every slot is in use need not be: some of the units
    /// in them may give them up.)
    pub(super) fn words(&self, is_full: bool) -> String {
        let new = format!("{} new in {}", self.new, span(self.hours));
        match self.full_in_hours {
            _ if is_full => format!("{new}, the spare is full"),
            Some(0) => format!("{new}, the spare is full within the hour at this rate"),
            Some(hours) => format!("{new}, the spare is full in {} at this rate", span(hours)),
            None => new,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A day in 2026.
    const NOW: u64 = 1_790_000_000;

    fn hours_ago(hours: u64) -> u64 {
        NOW - hours * HOUR
    }

    #[test]
    fn the_rate_leads_to_a_day() {
        let mut trend = Trend::default();
        assert_eq!(trend.forecast(100, NOW), None);
        trend.add(37, NOW, NOW);
        let said = |trend: &Trend, free| trend.forecast(free, NOW).unwrap().words(false);
        assert_eq!(
            said(&trend, 333),
            "37 new in 24 h, the spare is full in 9 days at this rate"
        );
        assert_eq!(
            said(&trend, 3),
            "37 new in 24 h, the spare is full in 1 h at this rate"
        );
        assert_eq!(
            said(&trend, 0),
            "37 new in 24 h, the spare is full within the hour at this rate"
        );
        let full = trend.forecast(0, NOW).unwrap().words(true);
        assert_eq!(full, "37 new in 24 h, the spare is full");
        assert_eq!(said(&trend, 1 << 40), "37 new in 24 h");
        assert_eq!(said(&trend, u64::MAX), "37 new in 24 h");
        // Nothing today: then the week counts.
        let mut trend = Trend::default();
        trend.add(14, hours_ago(50), hours_ago(50));
        assert_eq!(
            said(&trend, 14),
            "14 new in 7 days, the spare is full in 7 days at this rate"
        );
        assert_eq!(trend.forecast(1, NOW + 10 * DAY * HOUR), None);
    }

    #[test]
    fn what_nobody_saw_come_is_spread_over_the_time() {
        let mut trend = Trend::default();
        trend.add(100, hours_ago(99), NOW);
        assert_eq!((trend.last_day(NOW), trend.last_week(NOW)), (24, 100));
        // For years.
        let mut trend = Trend::default();
        trend.add(KEPT as u64, 0, NOW);
        assert_eq!((trend.last_day(NOW), trend.last_week(NOW)), (24, 168));
        let mut trend = Trend::default();
        trend.add(u64::MAX, 0, NOW);
        trend.add(u64::MAX, NOW, NOW);
        assert_eq!(trend.last_week(NOW), u64::MAX);
    }

    #[test]
    fn faster_each_day_is_three_days_in_a_row() {
        let days = |days: [u64; 3]| {
            let mut trend = Trend::default();
            for (day, new) in days.into_iter().enumerate() {
                let at = hours_ago((2 - day as u64) * DAY);
                trend.add(new, at, at);
            }
            trend.faster_each_day(NOW)
        };
        assert_eq!(days([1, 2, 10]), Some([1, 2, 10]));
        for wrong in [
            [0, 2, 10],
            [1, 1, 10],
            [1, 2, 9],
            [3, 2, 10],
            [1, 12, 11],
            [1, 12, 12],
        ] {
            assert_eq!(days(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_clock_that_jumps_loses_nothing_that_counts() {
        let mut trend = Trend::default();
        trend.add(5, NOW, NOW);
        // Without a battery: 1970, and then right again.
        trend.add(7, NOW, 100);
        assert_eq!((trend.last_day(100), trend.last_day(NOW)), (7, 5));
        // Years ahead, and back.
        trend.add(9, NOW, 3 * NOW);
        assert_eq!(trend.last_week(NOW), 5);
    }

    proptest! {
        #[test]
        fn it_stays_small_and_in_order(adds in prop::collection::vec((0_u64..1000, 0_u64..2000, 0_u64..2000), 0..60)) {
            let mut trend = Trend::default();
            let mut sum = 0;
            let mut last = 0;
            for (new, since, now) in adds {
                trend.add(new, since * HOUR, now * HOUR);
                sum += new;
                last = now * HOUR;
            }
            prop_assert!(trend.0.len() <= KEPT);
            prop_assert!(trend.0.is_sorted_by(|a, b| a.0 < b.0));
            prop_assert!(trend.0.iter().map(|(_, new)| new).sum::<u64>() <= sum);
            prop_assert!(trend.last_day(last) <= trend.last_week(last));
        }

        #[test]
        fn while_time_goes_on_a_week_has_all_of_it(adds in prop::collection::vec((0_u64..1000, 0_u64..3), 1..50)) {
            let mut trend = Trend::default();
            let mut now = NOW;
            let mut sum = 0;
            for (new, hours) in adds {
                let since = now;
                now += hours * HOUR;
                trend.add(new, since, now);
                sum += new;
            }
            prop_assert_eq!(trend.last_week(now), sum);
        }
    }
}
