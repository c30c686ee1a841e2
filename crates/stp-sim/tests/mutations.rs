//! Each checker can fail: one thing is broken on purpose, and a seed must find it, by the words of that checker.

use stp_sim::{LANES, MEMORY, MOVES, Mutation, Options};

/// Some seed of these must end with a finding that says `words`.
fn found(mutation: Mutation, words: &str) {
    found_from(1000, mutation, words);
}

/// As [`found`], with streams that are given away and urgent bytes.
fn found_with_gifts(mutation: Mutation, words: &str) {
    found_from(MOVES, mutation, words);
}

fn found_from(first: u64, mutation: Mutation, words: &str) {
    found_in(first, |options| options, mutation, words);
}

/// As [`found`], where the storage is memory.
fn found_in_memory(mutation: Mutation, words: &str) {
    found_in(MEMORY, Options::memory, mutation, words);
}

fn found_in(first: u64, of: fn(Options) -> Options, mutation: Mutation, words: &str) {
    let mut others = Vec::new();
    for seed in first..first + 40 {
        let mut options = of(Options::from_seed(seed));
        options.mutation = Some(mutation);
        match stp_sim::run(&options, false).finding {
            Some(finding) if finding.contains(words) => {
                println!("{mutation:?}: seed {seed}: {finding}");
                return;
            }
            finding => others.extend(finding),
        }
    }
    panic!("{mutation:?} is not found by {words:?}, but by {others:#?}");
}

#[test]
fn a_byte_that_nobody_wrote_is_found() {
    found(Mutation::WrongByte, "a wrong byte");
}

#[test]
fn bytes_that_get_lost_are_found() {
    found(Mutation::LostBytes, "a wrong byte");
}

#[test]
fn bytes_after_the_end_are_found() {
    found(Mutation::DataAfterEnd, "data after the end");
}

#[test]
fn a_false_end_is_found() {
    found(Mutation::FalseEnd, "a clean end after");
}

#[test]
fn a_reset_without_an_excuse_is_found() {
    found(Mutation::BareReset, "reset without an excuse");
}

#[test]
fn a_connection_handed_over_twice_is_found() {
    found(Mutation::TwiceAccepted, "accepted twice");
}

#[test]
fn a_write_outside_the_seat_is_found() {
    found(Mutation::ForeignWrite, "a write outside the own seat");
}

#[test]
fn two_nodes_in_one_locked_seat_are_found() {
    found(Mutation::LockForAll, "in spite of locks");
}

#[test]
fn a_record_that_does_not_rise_is_found() {
    found(Mutation::RecordAgain, "follows");
}

#[test]
fn a_segment_that_changes_is_found() {
    found(
        Mutation::SegmentChanged,
        "changed since it was first written",
    );
}

#[test]
fn a_segment_in_the_wrong_slot_is_found() {
    found(Mutation::WrongSlot, "the slot of another number");
}

#[test]
fn a_slot_used_again_too_early_is_found() {
    found(Mutation::UnheededAcks, "are acknowledged");
}

#[test]
fn a_storage_that_takes_nothing_any_more_is_found() {
    found(Mutation::DeadStorage, "failed without an excuse");
}

#[test]
fn transfers_without_bounds_are_found() {
    found(Mutation::LostCompletion, "do not end");
}

#[test]
fn an_engine_that_spins_is_found() {
    found(Mutation::Spin, "spins");
}

#[test]
fn an_engine_that_holds_too_much_is_found() {
    found(Mutation::NoRoom, "is the most");
}

#[test]
fn a_stream_that_stays_is_found() {
    found(Mutation::LeakedStream, "do not end");
}

#[test]
fn a_row_that_stays_is_found() {
    found(Mutation::LeakedRow, "rows of its socket table");
}

#[test]
fn a_node_that_leaves_silently_is_found() {
    found(Mutation::SilentLeave, "its record says");
}

#[test]
fn a_node_that_does_not_come_back_is_found() {
    found(Mutation::GoneForGood, "got no seat");
}

#[test]
fn unread_bytes_that_a_gift_loses_are_found() {
    found_with_gifts(Mutation::GiftLosesUnread, "a wrong byte");
}

#[test]
fn unsent_bytes_that_a_gift_doubles_are_found() {
    found_with_gifts(Mutation::GiftDoublesUnsent, "a wrong byte");
}

#[test]
fn a_stream_with_two_owners_is_found() {
    found_with_gifts(Mutation::GiftStaysToo, "which has an owner");
}

#[test]
fn a_gift_that_is_never_settled_is_found() {
    found_with_gifts(Mutation::GiftUnsettled, "do not end");
}

#[test]
fn a_byte_that_is_not_urgent_and_comes_so_is_found() {
    found_with_gifts(Mutation::FalseMark, "came as an urgent one");
}

#[test]
fn an_urgent_byte_that_comes_as_a_common_one_is_found() {
    found_with_gifts(Mutation::LostMark, "came as a common one");
}

#[test]
fn a_kept_byte_that_the_lane_loses_is_found() {
    found_from(LANES, Mutation::LaneLosesKept, "by the lane");
}

#[test]
fn bytes_that_overtake_others_by_the_lane_are_found() {
    found_from(LANES, Mutation::LanePastOrder, "a wrong byte");
}

#[test]
fn a_writer_that_is_not_told_of_room_is_found() {
    found_from(LANES, Mutation::SilentBell, "do not end");
}

#[test]
fn a_number_that_is_stored_first_is_found() {
    found_in_memory(Mutation::NumberFirst, "before the segment");
}

#[test]
fn a_segment_of_an_ended_session_is_found() {
    found_in_memory(Mutation::HotOldSession, "a session that is over");
}

#[test]
fn a_segment_that_is_taken_in_twice_is_found() {
    found_in_memory(Mutation::HotTwice, "reset without an excuse");
}

#[test]
fn a_segment_in_the_wrong_slot_of_memory_is_found() {
    found_in_memory(Mutation::HotWrongSlot, "the slot of another number");
}

#[test]
fn a_slot_of_memory_used_again_too_early_is_found() {
    found_in_memory(Mutation::UnheededAcks, "are acknowledged");
}

#[test]
fn a_wrong_byte_in_memory_is_found() {
    found_in_memory(Mutation::WrongByte, "a wrong byte");
}
