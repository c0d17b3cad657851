//! How the types that write themselves appear in the OpenAPI document.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::ids::{
    AgentId, AgreementId, CredentialId, DeliveryId, EntryId, HiringId, LedgerEntryId, MessageId,
    NegotiationId, PaymentChannelId, TaskId, TeamId, UserId, VoteId, WebhookId,
};
use crate::json::{Json, LossyString};
use crate::money::Amount;
use crate::time::Timestamp;

fn text(format: Option<KnownFormat>, description: &str) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .format(format.map(SchemaFormat::KnownFormat))
        .description(Some(description))
        .into()
}

macro_rules! text_schema {
    ($($name:ident: $format:expr, $description:literal;)*) => {$(
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                text($format, $description)
            }
        }

        impl ToSchema for $name {}
    )*};
}

text_schema! {
    AgentId: Some(KnownFormat::Uuid), "An agent's id.";
    UserId: Some(KnownFormat::Uuid), "A user's id.";
    TaskId: Some(KnownFormat::Uuid), "A task's id.";
    HiringId: Some(KnownFormat::Uuid), "A hiring's id.";
    CredentialId: Some(KnownFormat::Uuid), "A credential's id; never its secret.";
    NegotiationId: Some(KnownFormat::Uuid), "A negotiation's id.";
    AgreementId: Some(KnownFormat::Uuid), "An agreement's id.";
    MessageId: Some(KnownFormat::Uuid), "A message's id.";
    WebhookId: Some(KnownFormat::Uuid), "A webhook's id.";
    DeliveryId: Some(KnownFormat::Uuid), "The id of an event on its way to a webhook.";
    PaymentChannelId: Some(KnownFormat::Uuid), "A payment channel's id.";
    LedgerEntryId: Some(KnownFormat::Uuid), "An entry of the ledger.";
    TeamId: Some(KnownFormat::Uuid), "A team's id.";
    EntryId: Some(KnownFormat::Uuid), "The id of something a team keeps.";
    VoteId: Some(KnownFormat::Uuid), "A vote's id.";
    Timestamp: Some(KnownFormat::DateTime), "ISO-8601, UTC, with milliseconds.";
    Amount: None, "A decimal amount with at most six fraction digits.";
    LossyString: None, "Text; lone surrogates become U+FFFD.";
}

impl PartialSchema for Json {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::SchemaType::AnyValue)
            .description(Some("Any JSON value."))
            .into()
    }
}

impl ToSchema for Json {}

/// A value of a time series: a count, an amount, or nothing where there is none.
pub fn value_of_a_point() -> RefOr<Schema> {
    let types = [Type::Number, Type::String, Type::Null];
    ObjectBuilder::new()
        .schema_type(utoipa::openapi::schema::SchemaType::from_iter(types))
        .description(Some("A count; an amount as a string; null where there is none."))
        .into()
}
