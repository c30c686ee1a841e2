//! Layouts as data: every on-volume structure is declared once and can print its own table.
//!
//! - A structure's size is asserted where it is declared; all fields are unaligned little-endian, so
//!   there is no padding to leak or to disagree about.
//! - The tables of `docs/FORMAT.md` are compared with [`Layout`]s by a test.

/// One field of a [`Layout`].
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name in the code.
    pub name: &'static str,
    /// Bytes from the structure's start.
    pub offset: usize,
    /// Its length in bytes.
    pub bytes: usize,
    /// What it means.
    pub doc: &'static str,
}

/// An on-volume structure.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Its name in the code.
    pub name: &'static str,
    /// Its length in bytes.
    pub bytes: usize,
    /// Its fields, in order.
    pub fields: &'static [Field],
}

impl core::fmt::Display for Layout {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        writeln!(f, "| offset | bytes | field | meaning |")?;
        writeln!(f, "|---:|---:|---|---|")?;
        self.fields.iter().try_for_each(|field| {
            let Field {
                name,
                offset,
                bytes,
                doc,
            } = field;
            writeln!(f, "| {offset} | {bytes} | `{name}` | {} |", doc.trim())
        })
    }
}

macro_rules! record {
    ($(#[doc = $doc:literal])* struct $name:ident [$size:expr] {
        $(#[doc = $field_doc:literal] $field:ident: $ty:ty,)*
    }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable,
            zerocopy::KnownLayout, zerocopy::Unaligned)]
        #[repr(C)]
        pub(crate) struct $name {
            $(#[doc = $field_doc] pub(crate) $field: $ty,)*
        }

        const _: () = assert!(size_of::<$name>() == $size);

        impl $name {
            pub(crate) const LAYOUT: $crate::layout::Layout = $crate::layout::Layout {
                name: stringify!($name),
                bytes: $size,
                fields: &[$($crate::layout::Field {
                    name: stringify!($field),
                    offset: core::mem::offset_of!($name, $field),
                    bytes: size_of::<$ty>(),
                    doc: $field_doc,
                },)*],
            };
        }
    };
}
pub(crate) use record;

/// Every structure of the format, in the order of `docs/FORMAT.md`.
pub const LAYOUTS: &[Layout] = &[
    crate::superblock::SuperblockBytes::LAYOUT,
    crate::seat::SeatHead::LAYOUT,
    crate::seat::LinkEntryBytes::LAYOUT,
    crate::table::TableHead::LAYOUT,
    crate::table::ScbBytes::LAYOUT,
    crate::segment::SegmentHead::LAYOUT,
    crate::segment::FrameHead::LAYOUT,
    crate::segment::OpenBytes::LAYOUT,
    crate::segment::HoldBytes::LAYOUT,
    crate::segment::AdoptBytes::LAYOUT,
    crate::gift::GiftHead::LAYOUT,
    crate::gift::GiftOfferBytes::LAYOUT,
    crate::gift::GiftStateBytes::LAYOUT,
];
