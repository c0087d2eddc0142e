//! Heartbeats show whether Redis responds to this instance, and whether the other instances are alive.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

// How many heartbeats this instance sends (in about 4 s) without seeing a new heartbeat from another instance before it
// treats that instance as dead. Heartbeats count only while Redis responds.
const HEARTBEATS_UNTIL_DEAD: u32 = 7;
const MAX_WAIT: Duration = Duration::from_secs(2); // how long a call may take before Redis counts as unavailable

#[derive(Default)]
pub struct Heartbeats {
    pub next_heartbeat_at: Duration,
    pub is_calling: bool, // a call is pending: neither its reply nor its events have arrived
    pub calls: VecDeque<(u64, Duration)>, // calls that Redis has not confirmed: last request number, call time
    pub rejection: Option<String>, // why there is no connection, or why Redis rejects calls
    // For each other instance: its newest heartbeat, and how many heartbeats this instance has sent since then.
    other_instances: HashMap<String, (String, u32)>,
    was_available: Option<bool>,
}

impl Heartbeats {
    /// Records that Redis has executed all requests up to `number`.
    pub fn confirm(&mut self, number: u64) {
        while self.calls.front().is_some_and(|(last, _)| *last <= number) {
            self.calls.pop_front();
        }
        self.is_calling &= !self.calls.is_empty();
    }

    pub fn unavailable_at(&self) -> Option<Duration> {
        self.calls.front().map(|(_, at)| *at + MAX_WAIT)
    }

    pub fn handle_lost_connection(&mut self, reason: String) {
        self.is_calling = false;
        self.rejection = Some(reason);
        self.other_instances.clear();
    }

    /// For each other instance, counts the heartbeats that this instance (`own`) has sent since the other one's newest
    /// heartbeat. Returns the instances whose count has reached `HEARTBEATS_UNTIL_DEAD`, each with its newest
    /// heartbeat. `beats` lists all instances, each followed by its newest heartbeat.
    pub fn find_silent_instances(&mut self, beats: &[String], own: u32) -> Vec<(String, String)> {
        if beats.is_empty() {
            return Vec::new(); // the call was not a heartbeat, so its reply lists no instances
        }
        let before = std::mem::take(&mut self.other_instances);
        let mut silent = Vec::new();
        for [instance, beat] in beats.as_chunks().0 {
            let count = match before.get(instance) {
                Some((last, count)) if last == beat => count + 1,
                _ => 0,
            };
            if *instance == own.to_string() {
                continue;
            }
            if count >= HEARTBEATS_UNTIL_DEAD {
                log::info!("REDIS instance {instance} is silent");
                silent.push((instance.clone(), beat.clone()));
            }
            self.other_instances.insert(instance.clone(), (beat.clone(), count));
        }
        silent
    }

    pub fn log_availability(&mut self, is_available: bool, instance: u32) {
        let is_first_try = self.was_available.is_none() && !is_available && self.rejection.is_none();
        if is_first_try || self.was_available.replace(is_available) == Some(is_available) {
            return;
        }
        match is_available {
            true => log::info!("REDIS available, instance {instance}"),
            false => log::warn!("REDIS unavailable: {}", self.rejection.as_deref().unwrap_or("it does not respond")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(beats: &[(&str, &str)]) -> Vec<String> {
        beats.iter().flat_map(|(instance, beat)| [(*instance).to_owned(), (*beat).to_owned()]).collect()
    }

    #[test]
    fn an_instance_is_silent_after_seven_beats_without_one_of_its_own() {
        let mut beats = Heartbeats::default();
        for own in 0..20 {
            let instances = reply(&[("1", &own.to_string()), ("2", "5"), ("3", &own.to_string())]);
            let silent = beats.find_silent_instances(&instances, 1);
            let expected =
                if own < HEARTBEATS_UNTIL_DEAD { Vec::new() } else { vec![("2".to_owned(), "5".to_owned())] };
            assert_eq!(silent, expected, "beat {own}");
            assert!(beats.find_silent_instances(&[], 1).is_empty(), "calls without a beat do not count");
        }
        beats.handle_lost_connection("gone".into());
        assert!(beats.find_silent_instances(&reply(&[("2", "5")]), 1).is_empty(), "time without Redis does not count");
    }

    #[test]
    fn redis_is_late_once_a_call_has_waited_two_seconds() {
        let mut beats = Heartbeats::default();
        beats.calls.extend([(3, Duration::from_secs(1)), (5, Duration::from_secs(2))]);
        assert_eq!(beats.unavailable_at(), Some(Duration::from_secs(3)));
        beats.confirm(4);
        assert_eq!(beats.unavailable_at(), Some(Duration::from_secs(4)));
        beats.confirm(5);
        assert_eq!(beats.unavailable_at(), None);
    }
}
