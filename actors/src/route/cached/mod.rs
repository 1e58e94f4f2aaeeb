//! Answers from the cache: row by row, so that of a batch only those rows are computed that nobody has computed before.
//!
//! What is cached is what a model's manifest allows to (`cache = true`), never across tenants, and under the namespace of
//! the version that answers: another version, or other files of it, find nothing of the old.

mod entry;
mod key;

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use sensorium_cluster::cache::{Cache, Claim, Found, Landed};

use self::entry::Entry;
use crate::error::{Error, Result};
use crate::request::{Context, NamedTensor, Reply, Request};
use crate::tensor::Tensor;

/// A request's parameter that, if false, goes past the cache.
pub const PARAMETER: &str = "cache";

/// What of a request can be looked up.
pub struct Plan {
    /// One per row.
    keys: Vec<u128>,
    /// Who alone may compute what is to be kept under them.
    version: u64,
    namespace: Arc<str>,
}

impl Plan {
    /// Nothing, if the request wants none of it, or has no rows.
    ///
    /// # Errors
    /// `InvalidArgument` if the parameter is no truth value.
    pub fn of(request: &Request, version: u64, namespace: &str, context: &Context) -> Result<Option<Self>> {
        if !request.parameters.flag(PARAMETER)?.unwrap_or(true) || namespace.is_empty() {
            return Ok(None);
        }
        let keys = key::rows(request, namespace, &context.tenant);
        Ok(keys.map(|keys| Self { keys, version, namespace: namespace.into() }))
    }

    /// Answers from the cache what it has, and computes the rest, all of it at once.
    pub async fn answer<F>(self, cache: &Cache, request: &Request, compute: impl Fn(Request) -> F) -> Result<Reply>
    where
        F: Future<Output = Result<Reply>>,
    {
        let rows = self.keys.len();
        let mut entries: Vec<Option<Bytes>> = vec![None; rows];
        let mut claims: Vec<(usize, Claim)> = Vec::new();
        let mut waiting = FuturesUnordered::new();
        for (row, found) in cache.look_up(&self.keys).await.into_iter().enumerate() {
            match found {
                Found::Value(value) => entries[row] = Some(value),
                Found::Claim(claim) => claims.push((row, claim)),
                Found::Wait(waiter) => waiting.push(waiter.wait().map(move |landed| (row, landed))),
            }
        }
        let mut failed = false;
        loop {
            if !claims.is_empty() {
                match self.compute(cache, request, std::mem::take(&mut claims), &mut entries, &compute).await? {
                    Computed::Whole(reply) => return Ok(reply),
                    Computed::Rows => {}
                }
            }
            // all are waited for at once: claims are not to lie about while one that holds another is waited for
            let Some(landed) = waiting.next().await else { break };
            let mut next = Some(landed);
            while let Some((row, landed)) = next {
                match landed {
                    Landed::Value(value) => entries[row] = Some(value),
                    Landed::Claim(claim) => claims.push((row, claim)),
                    Landed::Failed => failed = true,
                }
                next = waiting.next().now_or_never().flatten();
            }
            if failed {
                break;
            }
        }
        drop(claims);
        let read: Option<Vec<Entry>> = entries.iter().map(|value| Entry::decode(value.as_ref()?)).collect();
        match read.and_then(|read| compose(&request.model, read)) {
            Some(reply) => Ok(reply),
            // whoever was waited for has failed, or another build has written it
            None => compute(request.clone()).await,
        }
    }

    /// Computes rows, at once, and keeps them.
    async fn compute<F>(
        &self,
        cache: &Cache,
        request: &Request,
        mut claims: Vec<(usize, Claim)>,
        entries: &mut [Option<Bytes>],
        compute: &impl Fn(Request) -> F,
    ) -> Result<Computed>
    where
        F: Future<Output = Result<Reply>>,
    {
        let rows = entries.len();
        // claims that others have left come in any order, and answers come in that of the rows
        claims.sort_by_key(|(row, _)| *row);
        let wanted: Vec<usize> = claims.iter().map(|(row, _)| *row).collect();
        let part = part(request, &wanted)?;
        let pinned = Request { version: Some(self.version), namespace: Some(self.namespace.clone()), ..part };
        let reply = match compute(pinned).await {
            Ok(reply) => reply,
            // an error that names a row is to name the caller's
            Err(Error::InvalidArgument { .. }) if wanted.len() < rows => {
                fail(claims);
                return compute(request.clone()).await.map(Computed::Whole);
            }
            // other files answer by now: they may, but not under this name
            Err(Error::NotFound { .. }) => {
                fail(claims);
                return compute(request.clone()).await.map(Computed::Whole);
            }
            // it says nothing of the next who tries
            Err(error @ (Error::DeadlineExceeded { .. } | Error::Cancelled)) => return Err(error),
            Err(error) => {
                fail(claims);
                return Err(error);
            }
        };
        if wanted.len() == rows {
            keep(cache, claims, &reply);
            return Ok(Computed::Whole(reply));
        }
        let Some(made) = Entry::of_rows(&reply, wanted.len()) else {
            // its answers do not belong to rows
            fail(claims);
            return compute(request.clone()).await.map(Computed::Whole);
        };
        let (rows, claims): (Vec<usize>, Vec<Claim>) = claims.into_iter().unzip();
        for (row, value) in rows.into_iter().zip(fulfil(cache, claims, made)) {
            entries[row] = Some(value);
        }
        Ok(Computed::Rows)
    }
}

/// What a computation has made.
enum Computed {
    /// The answer.
    Whole(Reply),
    /// The rows that were claimed.
    Rows,
}

fn fail(claims: Vec<(usize, Claim)>) {
    claims.into_iter().for_each(|(_, claim)| claim.fail());
}

/// Some rows of a request.
fn part(request: &Request, wanted: &[usize]) -> Result<Request> {
    let all = request.inputs.first().is_some_and(|input| input.tensor.rows() == wanted.len());
    if all {
        return Ok(request.clone());
    }
    let cut = |input: &NamedTensor| -> Result<NamedTensor> {
        let unexpected = |error: crate::tensor::Error| Error::Internal(error.to_string());
        let rows = input.tensor.split_rows().map_err(unexpected)?;
        let rows: Vec<Bytes> = wanted.iter().map(|&row| rows[row].clone()).collect();
        let tail = input.tensor.shape().get(1..).unwrap_or_default();
        let tensor = Tensor::join_rows(input.tensor.dtype(), tail, &rows).map_err(unexpected)?;
        Ok(NamedTensor { name: input.name.clone(), tensor })
    };
    let inputs = request.inputs.iter().map(cut).collect::<Result<_>>()?;
    Ok(Request { inputs, ..request.clone() })
}

/// Keeps an answer to all rows of a request, as far as it can be taken apart.
fn keep(cache: &Cache, claims: Vec<(usize, Claim)>, reply: &Reply) {
    match Entry::of_rows(reply, claims.len()) {
        Some(entries) => drop(fulfil(cache, claims.into_iter().map(|(_, claim)| claim).collect(), entries)),
        None => fail(claims),
    }
}

/// Keeps what may be kept, and gives the rest to those who wait for it and to nobody after them.
fn fulfil(cache: &Cache, claims: Vec<Claim>, entries: Vec<Entry>) -> Vec<Bytes> {
    let mut kept = Vec::with_capacity(claims.len());
    let mut values = Vec::with_capacity(claims.len());
    for (claim, entry) in claims.into_iter().zip(entries) {
        let value = entry.encode();
        values.push(value.clone());
        if entry.is_of_whole_input() {
            kept.push((claim, value));
        } else {
            claim.land(&value);
        }
    }
    cache.fulfil(kept);
    values
}

/// One answer from those of its rows; nothing if they do not fit together.
fn compose(model: &Arc<str>, entries: Vec<Entry>) -> Option<Reply> {
    let rows = entries.len();
    let mut entries = entries.into_iter();
    let first = entries.next()?;
    if rows == 1 {
        return first.into_reply(model);
    }
    let mut columns: Vec<Vec<Bytes>> = first.outputs.iter().map(|output| vec![output.data.clone()]).collect();
    let mut notes = entry::Notes::default();
    notes.add(0, &first)?;
    for (row, entry) in entries.enumerate() {
        if entry.version != first.version || !entry.fits(&first) {
            return None;
        }
        notes.add(row + 1, &entry)?;
        for (column, output) in columns.iter_mut().zip(entry.outputs) {
            column.push(output.data);
        }
    }
    let outputs = first.outputs.iter().zip(&columns).map(|(output, rows)| {
        let tail = output.shape.split_first().filter(|(count, _)| **count == 1)?.1;
        let tensor = Tensor::join_rows(output.dtype, tail, rows).ok()?;
        Some(NamedTensor { name: output.name.clone(), tensor })
    });
    let outputs = outputs.collect::<Option<Vec<_>>>()?;
    Some(Reply {
        model: model.clone(),
        version: first.version,
        outputs,
        parameters: notes.into_parameters(),
        last: true,
        tokens: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use futures::future::join_all;
    use sensorium_cluster::cache;

    use super::*;
    use crate::request::{Parameter, Parameters};

    fn cache() -> Cache {
        let time_to_live = Duration::from_secs(60);
        Cache::start(&cache::Options { near_bytes: 1 << 20, time_to_live, max_value_bytes: 1 << 16, redis: None })
            .unwrap()
    }

    fn request(texts: &[&str]) -> Request {
        let tensor = Tensor::from_elements(texts);
        let inputs = vec![NamedTensor { name: "text".into(), tensor }];
        Request { inputs, ..Request::of_bytes("m", "text", "") }
    }

    /// The lengths of the texts; those of 5 bytes and more are said to be cut, and `cut` to have ended too early. Notes what
    /// it was asked.
    async fn lengths(asked: &Mutex<Vec<usize>>, request: Request) -> Result<Reply> {
        let texts = request.inputs[0].tensor.elements().unwrap();
        asked.lock().unwrap().push(texts.len());
        tokio::task::yield_now().await;
        if let Some(row) = texts.iter().position(|text| &text[..] == b"bad") {
            return Err(Error::invalid(format!("text[{row}]"), "bad"));
        }
        let values: Vec<f32> = texts.iter().map(|text| text.len() as f32).collect();
        let cut: Vec<_> = (0..texts.len())
            .filter(|&row| texts[row].len() >= 5 || &texts[row][..] == b"cut")
            .map(|row| match &texts[row][..] {
                b"cut" => serde_json::json!({"row": row, "came": 0.5}),
                _ => serde_json::json!({"row": row, "limit": 4}),
            })
            .collect();
        let mut parameters = Parameters::default();
        if !cut.is_empty() {
            parameters.set("truncated", Parameter::String(serde_json::Value::from(cut).to_string()));
        }
        let tensor = Tensor::from_f32(vec![i64::try_from(values.len()).unwrap(), 1], &values).unwrap();
        let outputs = vec![NamedTensor { name: "length".into(), tensor }];
        Ok(Reply { model: "m".into(), version: 3, outputs, parameters, last: true, tokens: Vec::new() })
    }

    async fn ask(cache: &Cache, asked: &Mutex<Vec<usize>>, texts: &[&str]) -> Result<Reply> {
        let request = request(texts);
        let plan = Plan::of(&request, 3, "n", &Context::default()).unwrap().unwrap();
        plan.answer(cache, &request, |part| lengths(asked, part)).await
    }

    fn told(reply: &Reply) -> (Vec<f32>, Option<&str>) {
        (reply.output("length").unwrap().to_f32().unwrap(), reply.parameters.text("truncated").unwrap())
    }

    #[tokio::test]
    async fn only_misses_are_computed_and_the_order_is_kept() {
        let (cache, asked) = (cache(), Mutex::default());
        ask(&cache, &asked, &["a", "ccc"]).await.unwrap();
        let reply = ask(&cache, &asked, &["ccc", "bb", "ccc", "fffff", "a", "fffff"]).await.unwrap();
        let cut = r#"[{"limit":4,"row":3},{"limit":4,"row":5}]"#;
        assert_eq!(told(&reply), (vec![3.0, 2.0, 3.0, 5.0, 1.0, 5.0], Some(cut)));
        assert_eq!(reply.version, 3);
        assert_eq!(*asked.lock().unwrap(), [2, 2], "bb and fffff, once each");
        let reply = ask(&cache, &asked, &["fffff"]).await.unwrap();
        assert_eq!(told(&reply), (vec![5.0], Some(r#"[{"limit":4,"row":0}]"#)));
        assert_eq!(asked.lock().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn equal_requests_at_the_same_time_compute_once() {
        let (cache, asked) = (cache(), Mutex::default());
        let replies = join_all((0..20).map(|_| ask(&cache, &asked, &["a", "bb"]))).await;
        assert!(replies.iter().all(|reply| told(reply.as_ref().unwrap()).0 == [1.0, 2.0]));
        assert_eq!(*asked.lock().unwrap(), [2]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_turns_away_is_followed_by_one_of_those_who_wait() {
        let (cache, asked) = (cache(), Mutex::default());
        let slowly = async |texts: &[&str]| {
            let request = request(texts);
            let plan = Plan::of(&request, 3, "n", &Context::default()).unwrap().unwrap();
            let compute = |part: Request| async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                lengths(&asked, part).await
            };
            plan.answer(&cache, &request, compute).await
        };
        let impatient = tokio::time::timeout(Duration::from_millis(5), slowly(&["a", "bb", "a"]));
        let texts = |of: usize| if of.is_multiple_of(2) { &["a", "bb"][..] } else { &["bb", "ccc", "a"] };
        let patient = join_all((0..50).map(|of| slowly(texts(of))));
        let (gone, replies) = tokio::join!(impatient, patient);
        assert!(gone.is_err());
        for (of, reply) in replies.into_iter().enumerate() {
            let wanted: &[f32] = if of.is_multiple_of(2) { &[1.0, 2.0] } else { &[2.0, 3.0, 1.0] };
            assert_eq!(told(&reply.unwrap()).0, wanted);
        }
        let computed: usize = asked.lock().unwrap().iter().sum();
        assert_eq!(computed, 3, "each row once");
    }

    #[tokio::test]
    async fn errors_name_the_callers_row_and_are_not_kept() {
        let (cache, asked) = (cache(), Mutex::default());
        ask(&cache, &asked, &["a"]).await.unwrap();
        for _ in 0..2 {
            let error = ask(&cache, &asked, &["a", "bad"]).await.unwrap_err();
            assert!(error.to_string().starts_with("text[1]"), "{error}");
        }
    }

    #[tokio::test]
    async fn what_ended_too_early_is_given_but_not_kept() {
        let (cache, asked) = (cache(), Mutex::default());
        let cut = |row: usize| format!(r#"[{{"came":0.5,"row":{row}}}]"#);
        for (texts, row, computed) in [
            (&["cut"][..], 0, 1),
            (&["cut"], 0, 1),
            (&["a", "cut"], 1, 2),
            (&["a", "cut"], 1, 1),
            (&["bb", "a", "cut"], 2, 2),
        ] {
            let reply = ask(&cache, &asked, texts).await.unwrap();
            assert_eq!(told(&reply).1, Some(cut(row).as_str()), "{texts:?}");
            assert_eq!(asked.lock().unwrap().pop(), Some(computed), "{texts:?}");
        }
        // those who ask at the same time share it
        let replies = join_all((0..9).map(|_| ask(&cache, &asked, &["cut"]))).await;
        assert!(replies.iter().all(|reply| told(reply.as_ref().unwrap()).1.is_some()));
    }

    #[tokio::test]
    async fn what_other_files_answer_is_given_but_not_kept() {
        let (cache, asked) = (cache(), Mutex::default());
        let request = request(&["a"]);
        for _ in 0..2 {
            let plan = Plan::of(&request, 3, "old", &Context::default()).unwrap().unwrap();
            let compute = |part: Request| async {
                match part.namespace.as_deref() {
                    Some("old") => Err(Error::NotFound { what: "old".into(), known: String::new() }),
                    _ => lengths(&asked, part).await,
                }
            };
            assert_eq!(told(&plan.answer(&cache, &request, compute).await.unwrap()).0, [1.0]);
        }
        assert_eq!(*asked.lock().unwrap(), [1, 1]);
    }

    #[tokio::test]
    async fn nothing_crosses_tenants_namespaces_outputs_or_parameters() {
        let (cache, asked) = (cache(), Mutex::default());
        let plain = request(&["a"]);
        let mut tuned = plain.clone();
        tuned.parameters.set("p", Parameter::Int(1));
        let chosen = Request { outputs: vec!["length".into()], ..plain.clone() };
        let tenant = Context { tenant: "acme".into(), ..Context::default() };
        let all = [
            (&plain, "n", Context::default()),
            (&plain, "n", tenant),
            (&plain, "other", Context::default()),
            (&tuned, "n", Context::default()),
            (&chosen, "n", Context::default()),
        ];
        for (request, namespace, context) in &all {
            let plan = Plan::of(request, 3, namespace, context).unwrap().unwrap();
            plan.answer(&cache, request, |part| lengths(&asked, part)).await.unwrap();
        }
        assert_eq!(asked.lock().unwrap().len(), all.len());
        tuned.parameters = Parameters::default();
        tuned.parameters.set(PARAMETER, Parameter::Bool(false));
        assert!(Plan::of(&tuned, 3, "n", &Context::default()).unwrap().is_none());
    }
}
