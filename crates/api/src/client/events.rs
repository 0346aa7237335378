//! Events as they happen: server-sent events.

use super::{Client, ClientError, EventFilter};
use crate::Event;
use reqwest::{Method, Response};

/// Events as they happen.
#[derive(Debug)]
pub struct EventStream {
    response: Response,
    buffer: Vec<u8>,
}

impl Client {
    /// Follows events: first those after `filter.after` (or at or after `filter.since`), then new ones as they happen.
    ///
    /// # Errors
    /// As the daemon tells.
    pub async fn follow_events(&self, filter: &EventFilter) -> Result<EventStream, ClientError> {
        let call = self.call(Method::GET, &["events", "follow"]).query(filter);
        let response = call.raw(|builder| builder.header("Accept", "text/event-stream")).await?;
        Ok(EventStream { response, buffer: Vec::new() })
    }
}

impl EventStream {
    /// The next event; none when the daemon has gone.
    ///
    /// # Errors
    /// The connection broke, or what came is no event.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            while let Some(block) = take_block(&mut self.buffer) {
                if let Some(data) = data_of(&block) {
                    return serde_json::from_str(&data).map(Some).map_err(|error| ClientError::Unexpected {
                        call: "GET events/follow".into(),
                        what: format!("an event that cannot be read ({error})"),
                    });
                }
            }
            match self.response.chunk().await {
                Ok(Some(bytes)) => self.buffer.extend_from_slice(&bytes),
                Ok(None) => return Ok(None),
                Err(source) => {
                    return Err(ClientError::Transport { call: "GET events/follow".into(), source });
                }
            }
        }
    }
}

/// Takes one block (up to an empty line) off the front.
fn take_block(buffer: &mut Vec<u8>) -> Option<String> {
    let end = buffer.windows(2).position(|pair| pair == b"\n\n")?;
    let block: Vec<u8> = buffer.drain(..end + 2).collect();
    Some(String::from_utf8_lossy(&block).into_owned())
}

/// The joined `data:` lines of a block; none for a keep-alive comment.
fn data_of(block: &str) -> Option<String> {
    let lines: Vec<&str> = block
        .lines()
        .filter_map(|l| l.strip_prefix("data:"))
        .map(|l| l.strip_prefix(' ').unwrap_or(l))
        .collect();
    if lines.is_empty() { None } else { Some(lines.join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_arrive_in_any_pieces_and_comments_are_skipped() {
        let mut buffer = b": keep-alive\n\nid: 1\ndata: {\"a\":\ndata: 1}\n\nid: 2\nda".to_vec();
        assert_eq!(data_of(&take_block(&mut buffer).unwrap()), None);
        assert_eq!(data_of(&take_block(&mut buffer).unwrap()).unwrap(), "{\"a\":\n1}");
        assert_eq!(take_block(&mut buffer), None);
        buffer.extend_from_slice(b"ta: x\n\n");
        assert_eq!(data_of(&take_block(&mut buffer).unwrap()).unwrap(), "x");
    }
}
