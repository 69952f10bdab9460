//! `search` and `read` on a document store: retrieval as a governed resource.
//!
//! What an agent retrieves goes into a model's context, and from there into everything the task does next. So the
//! store is not an index beside the rules but a tool behind them:
//!
//! * **Every chunk has a label and an access list from ingest** (`access.rs`), given by the operator who put it in
//!   (`writ documents ingest`), never by the text. Without saying so text is untrusted: somebody outside may have
//!   written it (threat M11). What cannot be read admits nobody and has the label top.
//! * **A question sees what its asker may see, and nothing else** (`search.rs`): chunks whose list admits the user and
//!   every agent of the chain, and whose label flows to the clearance of the agent that gets the answer. The classes
//!   that admit are found first, and every statement is limited to them, before counting, ranking and limits.
//!   If all hidden chunks were deleted, the answer would be the same, byte for byte. A document one may not see is as
//!   one that is not there.
//! * **Every agent of the chain has to be on the list**, not the last one alone: what a child agent finds it hands
//!   back, and delegating never widens (a right is what every hop kept of it, and so is readership). A list that is
//!   meant for one agent working for others names them too.
//! * **Ranking knows the visible chunks only** (`rank.rs`): FTS5's `bm25()` weighs words by the whole index, so scores
//!   would tell how often a word stands in what is hidden. The store says in which chunks a word stands; those that are
//!   hidden are left out before anything is counted.
//!   Vectors (`embed.rs`) are of the chunk's text alone. Both orders are merged by reciprocal rank. What fits badly
//!   is not returned to fill up an answer: it would raise the task's label for nothing.
//! * **The answer's label is the join of its chunks' labels** (threat F12), and joins the contract's `returns`, which
//!   for such a tool says public and trusted, and leaves the rest to the chunks. What an answer tells by leaving out,
//!   that no visible chunk fits, is not in the label.
//! * **A chunk whose text, place or class is not what was put in** is not returned; the answer and the node's log
//!   name it.
//! * **The record says what went into the context**: the SHA-256 of every chunk's text, in `Outcome::manifest`.
//! * **A change holds from the next question on** (threat R02): every question reads the classes anew, in the
//!   transaction that reads the chunks.
//!
//! Not here: roles in access lists (a capability names the user and not their roles; use a tag and the agents'
//! clearance), and embeddings by a service or a model.

mod access;
mod catalogue;
mod chunk;
mod embed;
mod ingest;
mod rank;
mod search;
mod store;
mod tool;
mod words;

pub use access::{Asker, Class, InvalidReader, InvalidReaders, Named, Reader, Readers};
pub use catalogue::{ChunkInfo, DocumentInfo, Manifest};
pub use chunk::{CHUNK_BYTES_MAX, chunks};
pub use embed::{Embedder, HashedGrams, Vector};
pub use ingest::{Act, Change, DOCUMENT_BYTES_MAX, Ingested, NewDocument};
pub use search::{ANSWER_CHUNKS_MAX, Found, FoundChunk, Wanted, read, search};
pub use store::{ChunkId, DocumentId, Store, StoreError};
pub use tool::{Retrieval, RetrievalSettings};
