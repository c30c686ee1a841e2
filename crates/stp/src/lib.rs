//! stp
