//! The progress bar of a run.

use std::{rc::Rc, time::Duration};

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::load::{engine::Engine, plan::Amount, text::ms_text};

const INTERVAL: Duration = Duration::from_millis(500);

/// Draws until the task is aborted. Without a terminal it draws nothing.
pub(super) async fn show(engine: Rc<Engine>, amount: Amount) {
    let style = ProgressStyle::with_template("{bar:30} {percent:>3}%  {msg}").expect("a template");
    let length = match amount {
        Amount::Requests(requests) => requests,
        Amount::Duration(duration) => u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
    };
    let bar = Drawn(ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr()).with_style(style));
    if bar.0.is_hidden() {
        return;
    }
    let (mut acknowledged, mut clock) = (0, tokio::time::interval(INTERVAL));
    loop {
        clock.tick().await;
        let mut tally = engine.tally.borrow_mut();
        let rate = (tally.acknowledged - acknowledged) as f64 / INTERVAL.as_secs_f64();
        acknowledged = tally.acknowledged;
        let failed = tally.attempts - tally.acknowledged;
        let quantile = |quantile| ms_text(tally.recent.value_at_quantile(quantile));
        let text = format!(
            "{}/s acknowledged, {} errors, p50 {} ms, p99 {} ms",
            HumanCount(rate as u64),
            HumanCount(failed),
            quantile(0.5),
            quantile(0.99),
        );
        tally.recent.reset();
        bar.0.set_message(text);
        bar.0.set_position(match amount {
            Amount::Requests(_) => engine.started(),
            Amount::Duration(_) => u64::try_from(engine.started_at.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
    }
}

/// Clears the bar from the terminal when it is dropped.
struct Drawn(ProgressBar);

impl Drop for Drawn {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
