//! Connects the server to the operating system. The modules `server`, `http`, `chat` and `ws` do not poll, handle
//! signals or read a clock.

pub mod event_loop;
pub mod listener;
pub mod log_writer;
#[cfg_attr(not(feature = "metrics"), path = "metrics/absent.rs")]
pub mod metrics;
pub mod tls;

use std::{io::IsTerminal, os::fd::AsFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;

use crate::inspect::{InspectObservers, InspectOptions, Trace, filter::Filter, text::Detail, text::Style};
use crate::{broker::Broker, broker::Random, config::Config, operator::OperatorState, server::new_memory_broker};
use log_writer::LogWriter;

pub fn parse_trace_filter(config: &Config) -> Result<Filter, String> {
    let filter = config.trace_filter.as_deref().map(Filter::parse).transpose();
    Ok(filter.map_err(|error| format!("--trace-filter {error}"))?.unwrap_or_default())
}

/// Returns the broker that the options select. `wake` starts a turn of the event loop, and any thread may call it.
fn new_broker<E>(
    config: &Config,
    random: Random,
    operator: &mut OperatorState<E>,
    wake: impl Fn() + Clone + Send + 'static,
) -> Result<Box<dyn Broker>, String> {
    #[cfg(feature = "redis")]
    if let Some(url) = &config.features.redis.url {
        let (limits, names) = crate::server::broker_limits(config);
        let prefix = config.features.redis.prefix.as_deref().unwrap_or("wirechat").to_owned();
        let timeout = config.features.redis.timeout.unwrap_or(std::time::Duration::from_secs(5));
        let settings = crate::broker::redis::Settings { prefix, timeout, limits };
        let broker = crate::broker::redis::RedisBroker::open(url, settings, random, names, wake)?;
        return Ok(Box::new(broker));
    }
    #[cfg(feature = "sqlite")]
    if let Some(path) = &config.features.history_db {
        use crate::broker::sqlite::{LogLimits, SqliteBroker, database::DatabaseOptions};
        let options = DatabaseOptions {
            survives_power_failure: config.features.history_sync.as_deref() != Some("normal"),
            max_messages_per_room: config.features.history_keep.unwrap_or(10_000),
            max_age_days: config.features.history_days.unwrap_or(0),
        };
        let limits = LogLimits { messages: config.history, backlog: config.max_outbox, bytes: config.max_history };
        let mut config = config.clone();
        (config.history, config.max_empty_rooms) = (0, 0); // the `SqliteBroker` keeps the history, not this broker
        let memory = |random| Box::new(new_memory_broker(&config, random));
        let commit_durations = operator.commit_durations.get_or_insert_default().clone();
        let on_commit = move |elapsed| commit_durations.add(elapsed);
        let (broker, stored) = SqliteBroker::open(path, options, limits, random, memory, wake, on_commit)?;
        operator.bans.restore(stored.bans, stored.submit);
        return Ok(Box::new(broker));
    }
    drop((operator, wake)); // unused: the in-memory broker queues all events during `submit`
    Ok(Box::new(new_memory_broker(config, random)))
}

fn new_observers(config: &Config, log: &LogWriter, random: &mut Random) -> Result<InspectObservers, String> {
    let (filter, writer) = (parse_trace_filter(config)?, log.clone());
    let trace = config.trace.as_ref().map(|detail| {
        let detail = if detail == "full" { Detail::Full } else { Detail::Line };
        let style = Style::new(detail, std::io::stderr().is_terminal());
        Trace { style, filter, write: Box::new(move |lines: &str| writer.write(lines)) }
    });
    let record = config.record.clone().map(|dir| (dir, config.record_limit));
    let enables_inspection = config.inspect || (config.is_local() && !config.no_inspect);
    InspectObservers::new(InspectOptions { trace, record, enables_inspection, max_outbox: config.max_outbox }, random)
}

fn is_ready(file: &impl AsFd, flags: PollFlags) -> bool {
    // A signal can interrupt the poll, even with a timeout of 0. Retry, because the file may be ready all the same.
    retry_on_intr(|| poll(&mut [PollFd::new(file, flags)], Some(&Timespec::default()))).is_ok_and(|ready| ready > 0)
}
