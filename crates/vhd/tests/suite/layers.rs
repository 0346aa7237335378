//! Both formats behind one interface, as a chain uses them.

use std::sync::Arc;

use backstay_vhd::{
    Format, LayerFormat, Source, WriteTicket,
    create::CreateKind,
    map::{MapKind, map},
    testing::SimStorage,
    vhdx,
};

use crate::{common, vhdx::common as x};

const SIZE: u64 = 4 << 20;

/// Files and how to open them again.
type Open = Box<dyn Fn(u128) -> Box<dyn LayerFormat>>;

fn layers(differencing: bool) -> Vec<(Arc<SimStorage>, Open)> {
    let vhd = common::create(&common::options(
        SIZE,
        if differencing { common::differencing(common::SMALL_BLOCK) } else { CreateKind::dynamic() },
    ));
    let kind = if differencing { x::child() } else { vhdx::create::CreateKind::Dynamic };
    let vhdx = x::create(&x::options(SIZE, kind));
    let (first, second) = (Arc::clone(&vhd), Arc::clone(&vhdx));
    vec![
        (vhd, Box::new(move |_| Box::new(common::open(&first, None)))),
        (vhdx, Box::new(move |session| Box::new(x::open(&second, session, None)))),
    ]
}

fn write(layer: &dyn LayerFormat, offset: u64, data: &[u8]) {
    let mut ticket = WriteTicket::new();
    layer.begin_write(offset, data.len() as u64, &mut ticket).unwrap();
    for extent in ticket.extents() {
        let from = (extent.disk_offset - offset) as usize;
        layer.storage().write_at(&data[from..from + extent.len as usize], extent.file_offset).unwrap();
    }
    layer.complete_write(&ticket).unwrap();
}

#[test]
fn both_formats_behave_alike() {
    for differencing in [false, true] {
        let absent = if differencing { Source::Parent } else { Source::Zero };
        for (_, open) in layers(differencing) {
            let layer = open(1);
            let format = layer.format();
            assert!(layer.is_blank().unwrap(), "{format:?}");
            assert_eq!((layer.size(), layer.sector_size()), (SIZE, 512));
            assert_eq!(layer.parent().is_some(), differencing);
            let identity = layer.settle_identity().unwrap();
            write(layer.as_ref(), (1 << 20) - 1024, &[7; 2048]);
            assert_eq!(layer.identity(), identity, "{format:?}: settled");
            layer.flush().unwrap();
            layer.close().unwrap();
            assert!(layer.flush().is_err(), "{format:?}: closed is closed");

            let layer = open(2);
            assert!(!layer.is_blank().unwrap() && layer.allocated_blocks() > 0, "{format:?}");
            let mut extents = Vec::new();
            layer.resolve_read((1 << 20) - 1024, 2048, &mut extents).unwrap();
            let mut seen = Vec::new();
            for extent in &extents {
                let Source::Data { file_offset } = extent.source else {
                    panic!("{format:?}: it was written")
                };
                let mut bytes = vec![0; extent.len as usize];
                layer.storage().read_at(&mut bytes, file_offset).unwrap();
                seen.extend(bytes);
            }
            assert_eq!(seen, [7; 2048], "{format:?}");
            extents.clear();
            layer.resolve_read(3 << 20, 512, &mut extents).unwrap();
            assert_eq!(extents[0].source, absent, "{format:?}");
            let ranges = map(layer.as_ref()).unwrap();
            assert_eq!(ranges.iter().map(|range| range.len).sum::<u64>(), SIZE);
            let data = ranges.iter().filter(|range| matches!(range.kind, MapKind::Data { .. }));
            assert_eq!(data.map(|range| range.len).sum::<u64>(), 2048, "{format:?}: {ranges:?}");
        }
    }
    assert_eq!(Format::of_start(b"vhdxfile"), Some(Format::Vhdx));
    assert_eq!(Format::of_start(b"conectix"), None);
}
