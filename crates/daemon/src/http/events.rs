//! Events: listed, or followed as they happen (server-sent events).

use super::extract::Params;
use super::problem::ApiError;
use crate::app::App;
use crate::events::Wanted;
use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event as Sse, KeepAlive};
use axum::response::{IntoResponse, Sse as SseResponse};
use backstay_api::{Event, EventList, EventQuery, Problem};
use futures_util::stream;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

type Shared = State<Arc<App>>;

/// Events read from the history in one step.
const CHUNK: u32 = 1000;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(follow))
}

/// List events
#[utoipa::path(get, path = "/events", tag = "events", operation_id = "list_events", params(EventQuery),
    responses((status = 200, description = "Oldest first", body = EventList),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn list(State(app): Shared, Params(query): Params<EventQuery>) -> Result<Json<EventList>, ApiError> {
    let vm = query.vm.as_deref().map(|vm| app.vm_in_history(vm)).transpose()?;
    let limit = query.limit.unwrap_or(200).clamp(1, 10_000);
    // Read first: what happens meanwhile is neither skipped nor, with a filter that matched nothing, begun anew.
    let newest = app.events.last().await?;
    let items = app.events.select(Wanted::of(&query, vm), limit).await?;
    let next = match items.last() {
        Some(event) => event.seq,
        None => newest.max(query.after.unwrap_or(0)),
    };
    Ok(Json(EventList { items, next }))
}

/// Follow events
///
/// Server-sent events; the data of each is an `Event` in JSON and its id the event's number. Without `after` and `since`
/// only what happens from now on is sent.
#[utoipa::path(get, path = "/events/follow", tag = "events", operation_id = "follow_events", params(EventQuery),
    responses((status = 200, description = "A stream of events", body = Event, content_type = "text/event-stream"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
async fn follow(
    State(app): Shared,
    Params(query): Params<EventQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let vm = query.vm.as_deref().map(|vm| app.vm_in_history(vm)).transpose()?;
    // Listening starts before the history is read, so that nothing falls in between.
    let live = app.events.follow();
    let history = query.since.is_some() || query.after.is_some();
    let last = if history { query.after.unwrap_or(0) } else { app.events.last().await? };
    let mut ready = VecDeque::new();
    let wanted = Wanted::of(&query, vm);
    if history {
        ready.extend(app.events.select(Wanted { after: Some(last), ..wanted.clone() }, CHUNK).await?);
    }
    // What has been read is not all if there is more than one step: the follower goes on reading.
    let behind = ready.len() == CHUNK as usize;
    let follower = Follower { app, wanted, live, last, ready, behind };
    let events = stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        let data = serde_json::to_string(&event).unwrap_or_default();
        Some((Ok::<_, Infallible>(Sse::default().id(event.seq.to_string()).data(data)), follower))
    });
    Ok(SseResponse::new(events).keep_alive(KeepAlive::default()))
}

struct Follower {
    app: Arc<App>,
    wanted: Wanted,
    live: Receiver<Event>,
    last: u64,
    ready: VecDeque<Event>,
    /// The history has more than was read.
    behind: bool,
}

impl Follower {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                if event.seq > self.last {
                    self.last = event.seq;
                    return Some(event);
                }
                continue;
            }
            if self.behind {
                let wanted = Wanted { after: Some(self.last), ..self.wanted.clone() };
                let missed = self.app.events.select(wanted, CHUNK).await.ok()?;
                self.behind = missed.len() == CHUNK as usize;
                self.ready.extend(missed);
                continue;
            }
            match self.live.recv().await {
                Ok(event) if self.wanted.takes(&event) => self.ready.push_back(event),
                Ok(_) => {}
                // Too slow: the history has what was missed.
                Err(RecvError::Lagged(_)) => self.behind = true,
                Err(RecvError::Closed) => return None,
            }
        }
    }
}
