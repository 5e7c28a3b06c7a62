//! Cron expressions: when a schedule's occurrences are.
//!
//! Five fields (minute, hour, day of month, month, day of week) in a time zone, one bit for each value that a field allows.
//! Rules that crons differ in:
//!
//! - When both day fields are restricted, a day that matches either will do. A day field that begins with `*` restricts
//!   nothing in this sense, also with a step: `*/2` beside `MON` is the Mondays on odd days. Cronie and crontab(5) say so.
//! - Where the minute or the hour field begins with `*`, an occurrence is each minute of real time whose local time matches, so
//!   that intervals stay even when the clocks are changed.
//! - Of all others, local times that such a change skips fire once, right after the gap, and local times that come twice
//!   fire the first time only. Cronie tells the two apart in the same way.
//!
//! The time zones are in the binary, so that all nodes of one version agree on them.

use jiff::ToSpan as _;
use jiff::civil::{Date, DateTime, date};
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};

use super::excerpt::Excerpt;
use super::time::Timestamp;

/// Why a cron expression was refused. The texts are fit for the user.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CronError {
    /// Not five fields; how many.
    #[error(
        "it has {0} fields, not five: minute, hour, day of month, month, day of week; \
         or one of @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually"
    )]
    Fields(usize),
    /// Six fields.
    #[error("it has six fields, not five: seconds are not supported")]
    Seconds,
    /// A word with `@` that is not known.
    #[error(
        "unknown word {:?}; allowed are @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually",
        Excerpt(.0)
    )]
    Word(String),
    /// A time zone that is not known.
    #[error(
        "unknown time zone {:?}; a name of the IANA database is allowed, such as Europe/Berlin",
        Excerpt(.0)
    )]
    Zone(String),
    /// A value, a range or a step that is not one of the field.
    #[error("{field}: {problem}")]
    Field { field: &'static str, problem: String },
    /// No such day exists.
    #[error("it never fires: no month has such a day")]
    Never,
}

/// A cron expression that has been checked.
#[derive(Clone, Debug)]
pub struct Cron {
    zone: TimeZone,
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    /// From Sunday, which has the bits 0 and 7.
    weekdays: u64,
    /// Both day fields are restricted: a day that matches one of them will do.
    either_day: bool,
    /// Each minute that matches is an occurrence, whatever the clocks are changed by.
    real_time: bool,
}

/// What a field is called and what it may hold.
struct Field {
    name: &'static str,
    first: u8,
    /// The end of `*`.
    last: u8,
    /// The largest value that may be written: 7 is another word for Sunday.
    max: u8,
    /// Names of the values, from `first` on.
    names: &'static [&'static str],
}

const MINUTE: Field = Field { name: "minute", first: 0, last: 59, max: 59, names: &[] };
const HOUR: Field = Field { name: "hour", first: 0, last: 23, max: 23, names: &[] };
const DAY: Field = Field { name: "day of month", first: 1, last: 31, max: 31, names: &[] };
const MONTH: Field = Field {
    name: "month",
    first: 1,
    last: 12,
    max: 12,
    names: &["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
};
const WEEKDAY: Field = Field {
    name: "day of week",
    first: 0,
    last: 6,
    max: 7,
    names: &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
};

/// Words that stand for five fields.
const WORDS: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

/// How far ahead a day is looked for. The rarest one is 29 February on a given weekday: 40 years pass between two of
/// them where 2100, which has no such day, lies in between.
const YEARS: i16 = 48;

impl Cron {
    /// Reads an expression; spaces around it don't matter.
    pub fn parse(text: &str) -> Result<Self, CronError> {
        let text = text.trim();
        let zone_and_rest = ["CRON_TZ=", "TZ="].iter().find_map(|prefix| text.strip_prefix(prefix));
        let (zone, fields) = match zone_and_rest {
            None => (TimeZone::UTC, text),
            Some(rest) => {
                let (name, fields) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
                let zone = TimeZoneDatabase::bundled().get(name);
                (zone.map_err(|_| CronError::Zone(name.to_owned()))?, fields.trim_start())
            }
        };
        let fields = if fields.starts_with('@') {
            let word = WORDS.iter().find(|(word, _)| word.eq_ignore_ascii_case(fields));
            word.ok_or_else(|| CronError::Word(fields.to_owned()))?.1
        } else {
            fields
        };
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = *fields.as_slice() else {
            return Err(match fields.len() {
                6 => CronError::Seconds,
                count => CronError::Fields(count),
            });
        };
        let weekdays = WEEKDAY.parse(weekday)?;
        let cron = Self {
            zone,
            minutes: MINUTE.parse(minute)?,
            hours: HOUR.parse(hour)?,
            days: DAY.parse(day)?,
            months: MONTH.parse(month)?,
            weekdays: weekdays | weekdays >> 7,
            either_day: !day.starts_with('*') && !weekday.starts_with('*'),
            real_time: minute.starts_with('*') || hour.starts_with('*'),
        };
        // From here on each leap day falls on another weekday for 28 years.
        cron.next_day(date(2000, 1, 1)).ok_or(CronError::Never)?;
        Ok(cron)
    }

    /// The first occurrence after a time; `None` beyond the year 9999.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let after = jiff::Timestamp::from_millisecond(after.as_millis()).ok()?;
        let next = if self.real_time { self.next_real_time(after) } else { self.next_local_time(after) };
        next.map(|at| Timestamp::from_millis(at.as_millisecond()))
    }

    /// The first minute after a time whose local time matches.
    fn next_real_time(&self, after: jiff::Timestamp) -> Option<jiff::Timestamp> {
        let mut behind = self.zone.to_datetime(after);
        let mut unchanged_from = after;
        loop {
            // Until the clocks are changed, local times follow each other as real ones do.
            let offset = self.zone.to_offset(unchanged_from);
            let change = self.zone.following(unchanged_from).next().map(|change| change.timestamp());
            let next = self.next_match(behind).and_then(|local| offset.to_timestamp(local).ok());
            if let Some(at) = next.filter(|at| change.is_none_or(|change| *at < change)) {
                return Some(at);
            }
            unchanged_from = change?;
            // The first minute after the change may match, too.
            behind = self.zone.to_datetime(unchanged_from).checked_sub(1.nanosecond()).ok()?;
        }
    }

    /// The first time after another one at which a local time that matches comes for the first time, or is skipped.
    fn next_local_time(&self, after: jiff::Timestamp) -> Option<jiff::Timestamp> {
        // Local times up to this one were, or were first, at this time or before.
        let mut local = self.zone.to_datetime(after);
        loop {
            local = self.next_match(local)?;
            let at = self.instant(local)?;
            if at > after {
                return Some(at);
            }
        }
    }

    /// The first local time behind another one that matches.
    fn next_match(&self, behind: DateTime) -> Option<DateTime> {
        let mut day = behind.date();
        loop {
            day = self.next_day(day)?;
            let mut times = self.times().map(|(hour, minute)| day.at(hour, minute, 0, 0));
            if let Some(time) = times.find(|time| *time > behind) {
                return Some(time);
            }
            day = day.tomorrow().ok()?;
        }
    }

    /// The first day from `day` on that matches.
    fn next_day(&self, mut day: Date) -> Option<Date> {
        let last = day.year().saturating_add(YEARS);
        while day.year() <= last {
            if !has(self.months, day.month()) {
                day = day.last_of_month().tomorrow().ok()?;
            } else if self.is_day(day) {
                return Some(day);
            } else {
                day = day.tomorrow().ok()?;
            }
        }
        None
    }

    fn is_day(&self, day: Date) -> bool {
        let of_month = has(self.days, day.day());
        let of_week = has(self.weekdays, day.weekday().to_sunday_zero_offset());
        if self.either_day { of_month || of_week } else { of_month && of_week }
    }

    /// The times of a day, in order.
    fn times(&self) -> impl Iterator<Item = (i8, i8)> {
        let minutes = || (0..60).filter(|minute| has(self.minutes, *minute));
        let hours = (0..24).filter(|hour| has(self.hours, *hour));
        hours.flat_map(move |hour| minutes().map(move |minute| (hour, minute)))
    }

    /// When a local time is: the first time that it comes, or the end of the gap that it falls into. Never earlier than
    /// for an earlier local time.
    fn instant(&self, local: DateTime) -> Option<jiff::Timestamp> {
        let ambiguous = self.zone.to_ambiguous_timestamp(local);
        let AmbiguousOffset::Gap { .. } = ambiguous.offset() else { return ambiguous.earlier().ok() };
        // Read as if the clocks had not been changed it lies after the change, or at it.
        let unchanged = ambiguous.later().ok()?.as_second();
        let behind = jiff::Timestamp::from_second(unchanged + 1).ok()?;
        Some(self.zone.preceding(behind).next()?.timestamp())
    }
}

/// Whether a set has a value.
fn has(set: u64, value: i8) -> bool {
    set >> value & 1 == 1
}

impl Field {
    /// Reads a list of values, ranges and steps.
    fn parse(&self, text: &str) -> Result<u64, CronError> {
        text.split(',').try_fold(0, |set, part| Ok(set | self.parse_part(part)?))
    }

    fn parse_part(&self, part: &str) -> Result<u64, CronError> {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(self.parse_step(step)?)),
            None => (part, None),
        };
        let (from, to) = if range == "*" {
            (self.first, self.last)
        } else if let Some((from, to)) = range.split_once('-') {
            self.parse_range(from, to)?
        } else {
            let from = self.parse_value(range)?;
            // 5/15 is each 15th from 5 on.
            (from, if step.is_some() { from.max(self.last) } else { from })
        };
        let values = (from..=to).step_by(usize::from(step.unwrap_or(1)));
        Ok(values.fold(0, |set, value| set | 1 << value))
    }

    fn parse_range(&self, from: &str, to: &str) -> Result<(u8, u8), CronError> {
        let (from_value, to_value) = (self.parse_value(from)?, self.parse_value(to)?);
        // A week may end with Sunday, whichever way that is written.
        let to_value = if self.max > self.last && to_value == 0 && from_value > 0 { 7 } else { to_value };
        if from_value > to_value {
            return Err(self.error(format!("the range {from}-{to} ends before it begins")));
        }
        Ok((from_value, to_value))
    }

    fn parse_value(&self, text: &str) -> Result<u8, CronError> {
        if let Some(name) = (self.first..).zip(self.names).find(|(_, name)| name.eq_ignore_ascii_case(text)) {
            return Ok(name.0);
        }
        match read_number(text) {
            Some(value) if (self.first..=self.max).contains(&value) => Ok(value),
            _ => {
                let names = match self.names {
                    [first, .., last] => format!(" and {first} to {last}"),
                    _ => String::new(),
                };
                let (first, max) = (self.first, self.max);
                Err(self.error(format!(
                    "{:?} is not allowed; allowed are {first} to {max}{names}",
                    Excerpt(text)
                )))
            }
        }
    }

    fn parse_step(&self, text: &str) -> Result<u8, CronError> {
        read_number(text)
            .filter(|step| *step > 0)
            .ok_or_else(|| self.error(format!("the step {:?} is not a number from 1 to 255", Excerpt(text))))
    }

    fn error(&self, problem: String) -> CronError {
        CronError::Field { field: self.name, problem }
    }
}

/// Digits only: no sign.
fn read_number(text: &str) -> Option<u8> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn time(text: &str) -> Timestamp {
        Timestamp::from_millis(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    fn text(time: Timestamp) -> String {
        jiff::Timestamp::from_millisecond(time.as_millis()).unwrap().to_string()
    }

    /// The occurrences after a time, seconds and `Z` left out.
    #[track_caller]
    fn check(cron: &str, after: &str, expected: &[&str]) {
        let parsed = Cron::parse(cron).unwrap_or_else(|error| panic!("{cron}: {error}"));
        let mut at = time(&format!("{after}:00Z"));
        let mut occurrences = Vec::new();
        for _ in expected {
            at = parsed.next_after(at).unwrap();
            occurrences.push(text(at).replace(":00Z", ""));
        }
        assert_eq!(occurrences, expected, "{cron}");
    }

    #[track_caller]
    fn check_error(cron: &str, expected: &str) {
        assert_eq!(Cron::parse(cron).unwrap_err().to_string(), expected, "{cron}");
    }

    #[test]
    fn fields() {
        check("* * * * *", "2026-01-31T23:58", &["2026-01-31T23:59", "2026-02-01T00:00"]);
        check("30 4 * * *", "2026-01-31T04:30", &["2026-02-01T04:30"]);
        check("0,30 9-10 * * *", "2026-01-01T09:00", &["2026-01-01T09:30", "2026-01-01T10:00"]);
        check(
            "*/20 * * * *",
            "2026-01-01T00:00",
            &["2026-01-01T00:20", "2026-01-01T00:40", "2026-01-01T01:00"],
        );
        check("10-30/10,59 * * * *", "2026-01-01T00:20", &["2026-01-01T00:30", "2026-01-01T00:59"]);
        check(
            "5/25 * * * *",
            "2026-01-01T00:00",
            &["2026-01-01T00:05", "2026-01-01T00:30", "2026-01-01T00:55"],
        );
        check("*/90 * * * *", "2026-01-01T00:00", &["2026-01-01T01:00"]);
        check("0 0 31 * *", "2026-01-31T00:00", &["2026-03-31T00:00", "2026-05-31T00:00"]);
        check("0 0 1 jan,JUL-Sep/2 *", "2026-01-01T00:00", &["2026-07-01T00:00", "2026-09-01T00:00"]);
        check("  0\t0  1 1 *  ", "2026-01-01T00:00", &["2027-01-01T00:00"]);
        check("007 00 01 01 *", "2026-01-01T00:00", &["2026-01-01T00:07"]);
    }

    #[test]
    fn the_next_occurrence_is_later_by_whatever_little() {
        let cron = Cron::parse("0 4 * * *").unwrap();
        let occurrence = time("2026-01-01T04:00:00Z");
        let before = Timestamp::from_millis(occurrence.as_millis() - 1);
        assert_eq!(cron.next_after(before), Some(occurrence));
        assert_eq!(cron.next_after(occurrence), Some(time("2026-01-02T04:00:00Z")));
        assert_eq!(cron.next_after(time("2026-01-01T03:59:59.999Z")), Some(occurrence));
    }

    #[test]
    fn weekdays() {
        // 1 January 2026 is a Thursday.
        let sundays = ["2026-01-04T00:00", "2026-01-11T00:00"];
        for sunday in ["0", "7", "SUN", "sun", "0,7", "7-7", "*/7"] {
            check(&format!("0 0 * * {sunday}"), "2026-01-01T00:00", &sundays);
        }
        let weekend = ["2026-01-03T00:00", "2026-01-04T00:00", "2026-01-10T00:00"];
        for saturday_and_sunday in ["6-7", "6-0", "SAT-SUN", "6,0"] {
            check(&format!("0 0 * * {saturday_and_sunday}"), "2026-01-01T00:00", &weekend);
        }
        let odd = ["2026-01-02T00:00", "2026-01-05T00:00", "2026-01-07T00:00", "2026-01-09T00:00"];
        check("0 0 * * 1/2", "2026-01-01T00:00", &odd);
        check("0 0 * * MON-FRI/2", "2026-01-01T00:00", &odd);
    }

    #[test]
    fn of_two_restricted_day_fields_either_matches() {
        let either = ["2026-01-02T00:00", "2026-01-09T00:00", "2026-01-13T00:00", "2026-01-16T00:00"];
        check("0 0 13 * FRI", "2026-01-01T00:00", &either);
        check("0 0 1-31 * MON", "2026-01-01T00:00", &["2026-01-02T00:00", "2026-01-03T00:00"]);
        check("0 0 13 * *", "2026-01-01T00:00", &["2026-01-13T00:00", "2026-02-13T00:00"]);
        check("0 0 * * FRI", "2026-01-01T00:00", &["2026-01-02T00:00", "2026-01-09T00:00"]);
    }

    #[test]
    fn a_day_field_that_begins_with_a_star_is_not_restricted() {
        check("0 0 */2 * MON", "2026-01-01T00:00", &["2026-01-05T00:00", "2026-01-19T00:00"]);
        check("0 0 13 * */5", "2026-01-01T00:00", &["2026-02-13T00:00", "2026-03-13T00:00"]);
        check("0 0 */1 * MON", "2026-01-01T00:00", &["2026-01-05T00:00", "2026-01-12T00:00"]);
    }

    #[test]
    fn leap_days() {
        check("0 0 29 2 *", "2026-01-01T00:00", &["2028-02-29T00:00", "2032-02-29T00:00"]);
        check("0 0 29 2 *", "2096-03-01T00:00", &["2104-02-29T00:00"]);
        // The rarest of all.
        check("0 0 29 2 */7", "2026-01-01T00:00", &["2032-02-29T00:00", "2060-02-29T00:00"]);
        check("0 0 29 2 */7", "2088-03-01T00:00", &["2128-02-29T00:00"]);
    }

    #[test]
    fn words() {
        check("@hourly", "2026-01-01T00:00", &["2026-01-01T01:00"]);
        check("@daily", "2026-01-01T00:00", &["2026-01-02T00:00"]);
        check("@midnight", "2026-01-01T00:00", &["2026-01-02T00:00"]);
        check("@Weekly", "2026-01-01T00:00", &["2026-01-04T00:00"]);
        check("@monthly", "2026-01-01T00:00", &["2026-02-01T00:00"]);
        check("@yearly", "2026-01-01T00:00", &["2027-01-01T00:00"]);
        check("@annually", "2026-01-01T00:00", &["2027-01-01T00:00"]);
        check("CRON_TZ=Asia/Tokyo @daily", "2026-01-01T00:00", &["2026-01-01T15:00"]);
    }

    #[test]
    fn time_zones() {
        check("CRON_TZ=America/New_York 0 4 * * *", "2026-01-01T00:00", &["2026-01-01T09:00"]);
        check("TZ=Asia/Kolkata  0 4 * * *", "2026-01-01T00:00", &["2026-01-01T22:30"]);
        check("CRON_TZ=UTC 0 4 * * *", "2026-01-01T00:00", &["2026-01-01T04:00"]);
        check("CRON_TZ=europe/berlin 0 4 * * *", "2026-01-01T00:00", &["2026-01-01T03:00"]);
        // The day is the local one.
        check("CRON_TZ=Pacific/Auckland 0 4 * * MON", "2026-01-01T00:00", &["2026-01-04T15:00"]);
    }

    #[test]
    fn skipped_times_fire_once_after_the_gap() {
        // On 29 March 2026 at 01:00 UTC, 02:00 becomes 03:00.
        let berlin = |cron: &str, expected: &[&str]| {
            check(&format!("CRON_TZ=Europe/Berlin {cron}"), "2026-03-28T12:00", expected);
        };
        berlin("30 2 * * *", &["2026-03-29T01:00", "2026-03-30T00:30"]);
        berlin("0,15,30,45 2 * * *", &["2026-03-29T01:00", "2026-03-30T00:00"]);
        berlin("0/15 2 * * *", &["2026-03-29T01:00", "2026-03-30T00:00"]);
        berlin("0-59 2 * * *", &["2026-03-29T01:00", "2026-03-30T00:00", "2026-03-30T00:01"]);
        berlin(
            "30 1-3 29 * *",
            &["2026-03-29T00:30", "2026-03-29T01:00", "2026-03-29T01:30", "2026-04-28T23:30"],
        );
        berlin("0 2,3 * * *", &["2026-03-29T01:00", "2026-03-30T00:00", "2026-03-30T01:00"]);
        berlin("0 3 * * *", &["2026-03-29T01:00", "2026-03-30T01:00"]);
        check(
            "CRON_TZ=America/New_York 30 2 * * *",
            "2026-03-07T12:00",
            &["2026-03-08T07:00", "2026-03-09T06:30"],
        );
        // Half an hour, and a whole day.
        check(
            "CRON_TZ=Australia/Lord_Howe 0,20,40 2 * * *",
            "2026-10-03T12:00",
            &["2026-10-03T15:30", "2026-10-03T15:40", "2026-10-04T15:00"],
        );
        check(
            "CRON_TZ=Pacific/Apia 0 9 * * *",
            "2011-12-29T12:00",
            &["2011-12-29T19:00", "2011-12-30T10:00", "2011-12-30T19:00"],
        );
        // Midnight itself.
        check(
            "CRON_TZ=America/Sao_Paulo 0 0 * * *",
            "2018-11-03T12:00",
            &["2018-11-04T03:00", "2018-11-05T02:00"],
        );
        check("CRON_TZ=Africa/Cairo @daily", "2024-04-25T12:00", &["2024-04-25T22:00", "2024-04-26T21:00"]);
        check(
            "CRON_TZ=Asia/Beirut 30 0 * * SUN",
            "2024-03-30T12:00",
            &["2024-03-30T22:00", "2024-04-06T21:30"],
        );
    }

    #[test]
    fn repeated_times_fire_the_first_time() {
        // On 25 October 2026 at 01:00 UTC, 03:00 becomes 02:00.
        let berlin = |cron: &str, after: &str, expected: &[&str]| {
            check(&format!("CRON_TZ=Europe/Berlin {cron}"), after, expected);
        };
        berlin("30 2 * * *", "2026-10-24T12:00", &["2026-10-25T00:30", "2026-10-26T01:30"]);
        // From within the second time.
        berlin("30 2 * * *", "2026-10-25T01:10", &["2026-10-26T01:30"]);
        berlin("0,30 0-23 * * *", "2026-10-25T00:00", &["2026-10-25T00:30", "2026-10-25T02:00"]);
        check(
            "CRON_TZ=America/New_York 0 1 * * *",
            "2026-10-31T12:00",
            &["2026-11-01T05:00", "2026-11-02T06:00"],
        );
        check(
            "CRON_TZ=Australia/Lord_Howe 45 1 * * *",
            "2026-04-04T12:00",
            &["2026-04-04T14:45", "2026-04-05T15:15"],
        );
        // Midnight falls back into the day before.
        check(
            "CRON_TZ=America/Asuncion 30 23 * * *",
            "2024-03-23T12:00",
            &["2024-03-24T02:30", "2024-03-25T03:30"],
        );
        check(
            "CRON_TZ=America/Sao_Paulo 30 23 * * SAT",
            "2018-02-17T12:00",
            &["2018-02-18T01:30", "2018-02-25T02:30"],
        );
        check("CRON_TZ=Africa/Cairo 0 0 * * *", "2024-10-31T12:00", &["2024-10-31T22:00"]);
        check(
            "CRON_TZ=Asia/Beirut 0 23 * * *",
            "2024-10-26T12:00",
            &["2024-10-26T20:00", "2024-10-27T21:00"],
        );
    }

    #[test]
    fn intervals_follow_real_time() {
        let autumn = |cron: &str, after: &str, expected: &[&str]| {
            check(&format!("CRON_TZ=Europe/Berlin {cron}"), after, expected);
        };
        autumn(
            "*/15 * * * *",
            "2026-10-25T00:46",
            &[
                "2026-10-25T01:00",
                "2026-10-25T01:15",
                "2026-10-25T01:30",
                "2026-10-25T01:45",
                "2026-10-25T02:00",
            ],
        );
        autumn("* * * * *", "2026-10-25T01:05", &["2026-10-25T01:06", "2026-10-25T01:07"]);
        autumn(
            "*/30 2 * * *",
            "2026-10-25T00:00",
            &["2026-10-25T00:30", "2026-10-25T01:00", "2026-10-25T01:30", "2026-10-26T01:00"],
        );
        autumn("@hourly", "2026-10-24T23:30", &["2026-10-25T00:00", "2026-10-25T01:00", "2026-10-25T02:00"]);
        autumn(
            "0 */2 * * *",
            "2026-10-24T23:30",
            &["2026-10-25T00:00", "2026-10-25T01:00", "2026-10-25T03:00"],
        );
        let spring = |cron: &str, expected: &[&str]| {
            check(&format!("CRON_TZ=Europe/Berlin {cron}"), "2026-03-29T00:50", expected);
        };
        spring("30 * * * *", &["2026-03-29T01:30", "2026-03-29T02:30"]);
        spring("*/15 * * * *", &["2026-03-29T01:00", "2026-03-29T01:15"]);
        spring("*/15 2 * * *", &["2026-03-30T00:00", "2026-03-30T00:15"]);
        spring("0 * * * *", &["2026-03-29T01:00", "2026-03-29T02:00"]);
        check(
            "CRON_TZ=America/New_York */30 * * * *",
            "2026-11-01T05:10",
            &["2026-11-01T05:30", "2026-11-01T06:00", "2026-11-01T06:30", "2026-11-01T07:00"],
        );
        check(
            "CRON_TZ=America/New_York 15 * * * *",
            "2026-03-08T06:10",
            &["2026-03-08T06:15", "2026-03-08T07:15"],
        );
        // Half an hour: 02:00 becomes 01:30, and 02:30.
        check(
            "CRON_TZ=Australia/Lord_Howe */20 * * * *",
            "2026-04-04T14:35",
            &["2026-04-04T14:40", "2026-04-04T15:10", "2026-04-04T15:30"],
        );
        check(
            "CRON_TZ=Australia/Lord_Howe */20 2 * * *",
            "2026-10-03T12:00",
            &["2026-10-03T15:40", "2026-10-04T15:00"],
        );
        // Midnight: the day of a minute is that of its local time.
        check(
            "CRON_TZ=America/Sao_Paulo 0 * 4 11 *",
            "2018-11-03T12:00",
            &["2018-11-04T03:00", "2018-11-04T04:00"],
        );
        check(
            "CRON_TZ=Africa/Cairo */30 23 31 * *",
            "2024-10-31T12:00",
            &[
                "2024-10-31T20:00",
                "2024-10-31T20:30",
                "2024-10-31T21:00",
                "2024-10-31T21:30",
                "2024-12-31T21:00",
            ],
        );
        check(
            "CRON_TZ=Asia/Beirut */30 0 * * *",
            "2024-03-30T12:00",
            &["2024-03-31T21:00", "2024-03-31T21:30"],
        );
        // A time that is always skipped: 02:00 on a first Sunday of October.
        let never = Cron::parse("CRON_TZ=Australia/Lord_Howe */60 2 */40 10 SUN").unwrap();
        assert_eq!(never.next_after(time("2026-01-01T00:00:00Z")), None);
    }

    #[test]
    fn far_futures_end() {
        let cron = Cron::parse("* * * * *").unwrap();
        assert_eq!(cron.next_after(time("9999-12-30T00:00:00Z")), Some(time("9999-12-30T00:01:00Z")));
        assert_eq!(cron.next_after(Timestamp::MAX), None);
        assert_eq!(Cron::parse("@yearly").unwrap().next_after(time("9999-06-01T00:00:00Z")), None);
        check(
            "CRON_TZ=Europe/Berlin 30 2 * * *",
            "2126-03-30T12:00",
            &["2126-03-31T01:00", "2126-04-01T00:30"],
        );
    }

    #[test]
    fn refused() {
        let fields = |count| {
            format!(
                "it has {count} fields, not five: minute, hour, day of month, month, day of week; \
                 or one of @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually"
            )
        };
        for (cron, count) in [("", 0), (" ", 0), ("* * * *", 4), ("CRON_TZ=UTC", 0), ("* * * * * * *", 7)] {
            check_error(cron, &fields(count));
        }
        check_error("0 0 4 * * *", "it has six fields, not five: seconds are not supported");
        for word in ["@reboot", "@every 5m", "@", "@daily *"] {
            let expected = format!(
                "unknown word {word:?}; allowed are @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually"
            );
            check_error(word, &expected);
        }
        for zone in ["Europe/Berli", "", "../etc/passwd", "CET+1"] {
            let expected = format!(
                "unknown time zone {zone:?}; a name of the IANA database is allowed, such as Europe/Berlin"
            );
            check_error(&format!("CRON_TZ={zone} * * * * *"), &expected);
        }
        for (cron, expected) in [
            ("60 * * * *", "minute: \"60\" is not allowed; allowed are 0 to 59"),
            ("* 24 * * *", "hour: \"24\" is not allowed; allowed are 0 to 23"),
            ("* * 0 * *", "day of month: \"0\" is not allowed; allowed are 1 to 31"),
            ("* * 32 * *", "day of month: \"32\" is not allowed; allowed are 1 to 31"),
            ("* * * 13 *", "month: \"13\" is not allowed; allowed are 1 to 12 and JAN to DEC"),
            ("* * * MON *", "month: \"MON\" is not allowed; allowed are 1 to 12 and JAN to DEC"),
            ("* * * * 8", "day of week: \"8\" is not allowed; allowed are 0 to 7 and SUN to SAT"),
            ("* * L * *", "day of month: \"L\" is not allowed; allowed are 1 to 31"),
            ("1, * * * *", "minute: \"\" is not allowed; allowed are 0 to 59"),
            ("+5 * * * *", "minute: \"+5\" is not allowed; allowed are 0 to 59"),
            ("-5 * * * *", "minute: \"\" is not allowed; allowed are 0 to 59"),
            ("*-5 * * * *", "minute: \"*\" is not allowed; allowed are 0 to 59"),
            ("1-2-3 * * * *", "minute: \"2-3\" is not allowed; allowed are 0 to 59"),
            ("256 * * * *", "minute: \"256\" is not allowed; allowed are 0 to 59"),
            ("* 22-4 * * *", "hour: the range 22-4 ends before it begins"),
            ("* * * * FRI-MON", "day of week: the range FRI-MON ends before it begins"),
            ("*/0 * * * *", "minute: the step \"0\" is not a number from 1 to 255"),
            ("*/x * * * *", "minute: the step \"x\" is not a number from 1 to 255"),
            ("*/ * * * *", "minute: the step \"\" is not a number from 1 to 255"),
            ("*/2/2 * * * *", "minute: the step \"2/2\" is not a number from 1 to 255"),
            ("0 0 30 2 *", "it never fires: no month has such a day"),
            ("0 0 31 2,4,6,9,11 *", "it never fires: no month has such a day"),
            ("CRON_TZ=Europe/Berlin 0 0 30 FEB */2", "it never fires: no month has such a day"),
        ] {
            check_error(cron, expected);
        }
    }

    /// A field as text, and the values it means.
    type Part = (String, HashSet<i8>);

    fn part(first: i8, last: i8) -> impl Strategy<Value = Part> {
        let range = move |from: i8, to: i8, step: i8| -> HashSet<i8> {
            (from..=to).step_by(usize::try_from(step).unwrap()).collect()
        };
        let values = proptest::collection::hash_set(first..=last, 1..4);
        prop_oneof![
            4 => Just(("*".to_owned(), range(first, last, 1))),
            1 => (1..20_i8).prop_map(move |step| (format!("*/{step}"), range(first, last, step))),
            2 => values.prop_map(|values| {
                let texts: Vec<String> = values.iter().map(ToString::to_string).collect();
                (texts.join(","), values)
            }),
            1 => (first..=last, 0..10_i8, 1..5_i8).prop_map(move |(from, length, step)| {
                let to = from.saturating_add(length).min(last);
                (format!("{from}-{to}/{step}"), range(from, to, step))
            }),
        ]
    }

    fn matches(parts: &[Part; 5], local: DateTime) -> bool {
        let [minute, hour, day, month, weekday] = parts;
        let of_month = day.1.contains(&local.day());
        let of_week = weekday.1.contains(&local.weekday().to_sunday_zero_offset());
        let days = if day.0.starts_with('*') || weekday.0.starts_with('*') {
            of_month && of_week
        } else {
            of_month || of_week
        };
        minute.1.contains(&local.minute())
            && hour.1.contains(&local.hour())
            && month.1.contains(&local.month())
            && days
    }

    /// Minute by minute. A cron of intervals fires whenever the local minute matches. Any other does when it was not there
    /// before, and on the first minute after a gap in which one would have matched.
    fn occurrences(parts: &[Part; 5], zone: &TimeZone, after: i64, until: i64) -> Vec<i64> {
        let real_time = parts[..2].iter().any(|(text, _)| text.starts_with('*'));
        let mut seen = HashSet::new();
        let mut last: Option<DateTime> = None;
        let mut occurrences = Vec::new();
        // What comes twice must be seen the first time.
        for minute in after / 60 - 300..=until / 60 {
            let local = zone.to_datetime(jiff::Timestamp::from_second(minute * 60).unwrap());
            let mut fires = matches(parts, local) && (real_time || !seen.contains(&local));
            seen.insert(local);
            let mut skipped = last.map_or(local, |last| last + 1.minute());
            while !real_time && skipped < local {
                fires |= matches(parts, skipped);
                skipped += 1.minute();
            }
            last = Some(local);
            if fires && minute * 60 > after {
                occurrences.push(minute * 60);
            }
        }
        occurrences
    }

    const ZONES: [&str; 12] = [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "America/St_Johns",
        "Africa/Casablanca",
        "Africa/Cairo",
        "America/Asuncion",
        "America/Sao_Paulo",
        "Asia/Beirut",
        "Atlantic/Azores",
        "Pacific/Apia",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn occurrences_are_those_of_a_clock_that_is_watched(
            parts in (part(0, 59), part(0, 23), part(1, 31), part(1, 12), part(0, 6)),
            zone in proptest::sample::select(&ZONES[..]),
            day in 14_600..29_200_i64,
            seconds in 0..100_000_i64,
        ) {
            let (minute, hour, day_of_month, month, weekday) = parts;
            let parts = [minute, hour, day_of_month, month, weekday];
            let texts: Vec<&str> = parts.iter().map(|(text, _)| text.as_str()).collect();
            let text = format!("CRON_TZ={zone} {}", texts.join(" "));
            let cron = match Cron::parse(&text) {
                Ok(cron) => cron,
                Err(error) => {
                    prop_assert_eq!(error, CronError::Never);
                    return Ok(());
                }
            };
            let zone = TimeZoneDatabase::bundled().get(zone).unwrap();
            // Shortly before the clocks are changed, in 2009 to 2049, if they are.
            let day = jiff::Timestamp::from_second(day * 86_400).unwrap();
            let near = zone.following(day).next().map_or(day, |change| change.timestamp()).as_second();
            let after = near - seconds;
            let until = near + 50_000;
            let mut found = Vec::new();
            let mut at = Timestamp::from_millis(after * 1000);
            while let Some(next) = cron.next_after(at).filter(|next| next.as_secs() <= until) {
                found.push(next.as_secs());
                at = next;
            }
            prop_assert_eq!(found, occurrences(&parts, &zone, after, until), "{}", text);
        }

        #[test]
        fn no_text_is_too_odd(text in "((CRON_)?TZ=\\PC{0,8} )?[0-9*/,@A-Za-z -]{0,24}", ms in any::<i64>()) {
            if let Ok(cron) = Cron::parse(&text) {
                let after = Timestamp::from_millis(ms);
                prop_assert!(cron.next_after(after).is_none_or(|next| next > after));
            }
        }
    }
}
