//! What nodes say to each other.

use muster_protocol::cluster::Message;
use muster_protocol::cluster::frame::{Frame, is_name};
use muster_protocol::cluster::session::{Bounds, Session};

/// A frame that is taken is the same when it is written again; so are its messages; a session takes it without growing,
/// and only if it is the next.
///
/// # Panics
/// Something of that does not hold.
pub fn cluster_frames(bytes: &[u8]) {
    let Ok(frame) = Frame::decode(&bytes.to_vec().into()) else { return };
    let header = &frame.header;
    let names = [Some(&header.cluster), Some(&header.from.name), header.to.as_ref().map(|to| &to.name)];
    assert!(names.into_iter().flatten().all(|name| is_name(name)));
    if let Ok(again) = Frame::encode(header, frame.items.as_bytes()) {
        assert_eq!(Frame::decode(&again).unwrap(), frame);
    }
    let items: Vec<_> = frame.items.clone().collect();
    assert_eq!(items.iter().map(|item| item.len() + 4).sum::<usize>(), frame.items.as_bytes().len());
    for message in items.iter().filter_map(|item| Message::decode(item).ok()) {
        assert_eq!(Message::decode(&message.encode().unwrap()).unwrap(), message);
    }
    let bounds = Bounds { outbox_bytes_max: 4_096, window_bytes_max: 1_024, message_bytes_max: 1_024 };
    let mut session = Session::new(7, bounds);
    session.push("waits".into(), 8).unwrap();
    let waiting = session.waiting_bytes();
    let is_next = header.number == 1 && header.peer_epoch == 7;
    let taken = session.receive(frame.clone());
    assert_eq!(taken.items.count(), if is_next { items.len() } else { 0 });
    let again = session.receive(frame);
    assert_eq!(again.items.count(), 0, "twice");
    assert_eq!(session.waiting_bytes(), waiting);
}
