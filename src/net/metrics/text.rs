//! Writes the metrics as OpenMetrics 1.0, or in the older text format of Prometheus for clients that accept only that
//! format. Both formats have the same samples. They differ in the names of counter families and in the last line.

use std::fmt::Write;

use crate::chat::dialect::Dialect;
use crate::http::Request;
use crate::net::tls::Transport;
use crate::operator::{BUCKET_BOUNDS_SECONDS, DurationHistogram};
use crate::server::Server;
use crate::server::connection::Service;

const OPENMETRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes the metrics in a format that the request accepts. Returns the content type and the text.
pub fn write(
    request: &Request,
    server: &Server<Transport>,
    turn_durations: &DurationHistogram,
) -> (&'static str, String) {
    let accepts = |kind: &str| {
        let kinds = request.list_elements("Accept").filter_map(|element| element.split(|byte| *byte == b';').next());
        kinds.map(<[u8]>::trim_ascii).any(|element| element.eq_ignore_ascii_case(kind.as_bytes()))
    };
    let is_open_metrics = accepts("application/openmetrics-text") || !accepts("text/plain");
    let mut page = MetricsPage { text: String::with_capacity(8 * 1024), is_open_metrics };
    page.write_all(server, turn_durations);
    if is_open_metrics { (OPENMETRICS_TYPE, page.text + "# EOF\n") } else { (PROMETHEUS_TYPE, page.text) }
}

struct MetricsPage {
    text: String,
    is_open_metrics: bool,
}

impl MetricsPage {
    fn write_all(&mut self, server: &Server<Transport>, turn_durations: &DurationHistogram) {
        let (chat, limits) = (&server.chat, &server.limits);
        let counters = &chat.operator.counters;
        let mut members = [0; Dialect::ALL.len()];
        for room in chat.rooms.values() {
            members.iter_mut().zip(room.dialect_counts).for_each(|(sum, count)| *sum += count as u64);
        }
        let [events, rooms, presence] = members;
        let service = |service: Service| counters.open_connections[service as usize];
        let handshakes = server.connection_count().saturating_sub(limits.client_count) as u64;
        let endpoints = [
            ("/", events),
            ("/ws/{room}", rooms),
            ("/ws", presence),
            ("/echo", service(Service::Echo)),
            ("/inspect", service(Service::Inspect)),
            ("none", handshakes),
        ];
        let dialects = Dialect::ALL.map(|dialect| dialect.subprotocol().trim_start_matches("chat."));
        let sent = server.connections.table.values().map(|connection| connection.bytes_sent).sum::<u64>();
        let buffered = limits.buffered + limits.shared_bytes.get() + chat.broker.queued_bytes();
        let closes = counters.closes.iter().map(|(code, count)| (format_code(*code), *count));
        let rejections = counters.rejections.iter().map(|(status, count)| (status.to_string(), *count));
        let outcomes = ["restarted", "resumed"].into_iter().zip(counters.resumes);
        self.write_gauges("build_info", "Version of the server.", "version", &[(env!("CARGO_PKG_VERSION"), 1)]);
        self.write_gauges("connections", "Connections by endpoint; none before the upgrade.", "endpoint", &endpoints);
        self.write_gauge("rooms", "Rooms with members.", chat.rooms.len());
        self.write_counter("accepts", "Accepted connections.", counters.accepted_connections);
        self.write_counters("rejections", "Rejected requests by HTTP status.", "status", rejections);
        self.write_counters("closes", "Ended WebSocket connections by the code that was sent first.", "code", closes);
        let messages = dialects.into_iter().zip(counters.messages);
        self.write_counters("messages", "Messages that clients published to rooms.", "dialect", messages);
        self.write_counter("deliveries", "Messages sent to clients, one per recipient.", counters.deliveries);
        self.write_counter("duplicates", "Messages that repeated a nonce.", counters.duplicates);
        self.write_counters("resumes", "Joins that asked to resume.", "outcome", outcomes);
        self.write_counter("received_bytes", "Bytes received from clients.", counters.bytes_received);
        self.write_counter("sent_bytes", "Bytes sent to clients.", counters.bytes_sent + sent);
        self.write_counter("slow_consumers", "Clients closed because they did not read.", counters.slow_consumers);
        self.write_gauge("buffered_bytes", "Bytes in all buffers.", buffered);
        self.write_gauge("storage_queue_bytes", "Bytes that wait for the storage.", chat.broker.queued_bytes());
        if let Some(durations) = &chat.operator.commit_durations {
            self.write_histogram("storage_commit_duration_seconds", "Duration of a commit of --history-db.", durations);
        }
        self.write_histogram("turn_duration_seconds", "Duration of a turn of the event loop.", turn_durations);
    }

    fn write_family(&mut self, name: &str, help: &str, kind: &str) {
        let _ = write!(self.text, "# HELP wirechat_{name} {help}\n# TYPE wirechat_{name} {kind}\n");
    }

    fn write_gauge(&mut self, name: &str, help: &str, value: usize) {
        self.write_family(name, help, "gauge");
        let _ = writeln!(self.text, "wirechat_{name} {value}");
    }

    fn write_gauges(&mut self, name: &str, help: &str, label: &str, rows: &[(&str, u64)]) {
        self.write_family(name, help, "gauge");
        for (value, count) in rows {
            let _ = writeln!(self.text, "wirechat_{name}{{{label}=\"{value}\"}} {count}");
        }
    }

    /// OpenMetrics names a counter's family without `_total`; the older format includes `_total`.
    fn write_counter_family(&mut self, name: &str, help: &str) {
        let name = if self.is_open_metrics { name.to_owned() } else { format!("{name}_total") };
        self.write_family(&name, help, "counter");
    }

    fn write_counter(&mut self, name: &str, help: &str, value: u64) {
        self.write_counter_family(name, help);
        let _ = writeln!(self.text, "wirechat_{name}_total {value}");
    }

    fn write_counters<L>(&mut self, name: &str, help: &str, label: &str, rows: impl IntoIterator<Item = (L, u64)>)
    where
        L: AsRef<str>,
    {
        self.write_counter_family(name, help);
        for (value, count) in rows {
            let _ = writeln!(self.text, "wirechat_{name}_total{{{label}=\"{}\"}} {count}", value.as_ref());
        }
    }

    fn write_histogram(&mut self, name: &str, help: &str, durations: &DurationHistogram) {
        self.write_family(name, help, "histogram");
        let mut total = 0;
        for (bound, count) in BUCKET_BOUNDS_SECONDS.into_iter().zip(durations.counts()) {
            total += count;
            let bound = if bound.is_finite() { format!("{bound:?}") } else { "+Inf".to_owned() };
            let _ = writeln!(self.text, "wirechat_{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let sum = durations.sum().as_secs_f64();
        let _ = write!(self.text, "wirechat_{name}_sum {sum}\nwirechat_{name}_count {total}\n");
    }
}

fn format_code(code: u16) -> String {
    if code < 3000 { code.to_string() } else { format!("{}xxx", code / 1000) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_histogram_is_cumulative_and_a_bound_belongs_to_its_bucket() {
        let turn_durations = DurationHistogram::default();
        for micros in [50, 100, 101, 2_000_000] {
            turn_durations.add(Duration::from_micros(micros));
        }
        let mut page = MetricsPage { text: String::new(), is_open_metrics: true };
        page.write_histogram("x", "Help.", &turn_durations);
        let lines: Vec<&str> = page.text.lines().skip(2).collect();
        assert_eq!(lines[..2], ["wirechat_x_bucket{le=\"0.0001\"} 2", "wirechat_x_bucket{le=\"0.0003\"} 3"]);
        let end = ["wirechat_x_bucket{le=\"1.0\"} 3", "wirechat_x_bucket{le=\"+Inf\"} 4"];
        assert_eq!(lines[8..10], end);
        assert_eq!(lines[10..], ["wirechat_x_sum 2.000251", "wirechat_x_count 4"]);
    }

    #[test]
    fn codes_that_clients_choose_share_a_row() {
        assert_eq!([1000, 1005, 2999, 3000, 4000].map(format_code), ["1000", "1005", "2999", "3xxx", "4xxx"]);
    }
}
