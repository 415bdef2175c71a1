//! Answers that are longer than any that make sense end with an error, before they take the memory of the node:
//! what is asked of a server is otherwise read whole, and a line of a watch as well.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use ::kube::client::Body as Ask;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::{Request, Response};
use tower::Service;

/// A page of 500 pods, or all pods of a node, takes about 10 MiB.
const ANSWER_MAX: usize = 32 << 20;

/// An object in etcd is no larger than 1.5 MiB, unless that was changed.
const EVENT_MAX: usize = 8 << 20;

/// More was sent than makes sense.
#[derive(Clone, Copy, Debug)]
pub(super) struct TooLong {
    most: usize,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an answer of more than {} MiB", self.most >> 20)
    }
}

impl Error for TooLong {}

/// Requests whose answers are bounded.
#[derive(Clone, Debug)]
pub(super) struct Bounded<S>(pub(super) S);

impl<S, B> Service<Request<Ask>> for Bounded<S>
where
    S: Service<Request<Ask>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<BoundedBody<B>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Ask>) -> Self::Future {
        let mut parts = request.uri().query().unwrap_or_default().split('&');
        let is_watch = parts.any(|part| matches!(part, "watch" | "watch=1" | "watch=true"));
        let answer = self.0.call(request);
        Box::pin(async move { Ok(answer.await?.map(|body| BoundedBody::new(body, is_watch))) })
    }
}

/// An answer, and how much of it is held in memory as it is read.
pub(super) struct BoundedBody<B> {
    body: Pin<Box<B>>,
    /// Lines are read one by one.
    is_watch: bool,
    held: usize,
}

impl<B> BoundedBody<B> {
    fn new(body: B, is_watch: bool) -> Self {
        Self { body: Box::pin(body), is_watch, held: 0 }
    }

    fn take(&mut self, data: &[u8]) -> Result<(), TooLong> {
        let line = data.iter().rposition(|byte| *byte == b'\n').filter(|_| self.is_watch);
        self.held = line.map_or(self.held + data.len(), |end| data.len() - end - 1);
        let most = if self.is_watch { EVENT_MAX } else { ANSWER_MAX };
        if self.held > most { Err(TooLong { most }) } else { Ok(()) }
    }
}

impl<B> Body for BoundedBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.body.as_mut().poll_frame(context).map(|next| {
            let frame = match next? {
                Ok(frame) => frame,
                Err(error) => return Some(Err(error.into())),
            };
            let taken = frame.data_ref().map_or(Ok(()), |data| self.take(data));
            Some(taken.map(|()| frame).map_err(Into::into))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of so many bytes, each with a newline in it or not: the first that is too much.
    fn first_too_much(
        is_watch: bool,
        size: usize,
        has_newline: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let mut body = BoundedBody::new((), is_watch);
        (0..1_000).find(|n| {
            let mut piece = vec![b'x'; size];
            if has_newline(*n) {
                piece[size / 2] = b'\n';
            }
            body.take(&piece).is_err()
        })
    }

    #[test]
    fn what_is_held_is_bounded() {
        const MIB: usize = 1 << 20;
        assert_eq!(first_too_much(false, MIB, |_| false), Some(32));
        assert_eq!(first_too_much(false, MIB, |_| true), Some(32), "a list may have lines");
        assert_eq!(first_too_much(true, MIB, |_| false), Some(8));
        assert_eq!(first_too_much(true, MIB, |n| n % 8 == 0), None, "events have an end");
        assert_eq!(first_too_much(true, MIB, |n| n == 5), Some(13));
    }
}
