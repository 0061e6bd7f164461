"""Compile a net for one shape of inputs: from nodes to steps over shared buffers.

First it is worked out, from the end, in which forms each value is needed: as a float32
image, as integers of some scale and offset, or as an array for a layer that is not compiled.
Then every node is added in order, writing the forms that are needed. Values that a Concat
joins are written where the joined one lies.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import inf

import kernels
from caffeio.graph import Net, Value
from kernels import ConvGeometry, OutputStage, QuantParams
from kernels.output import CheckedStage
from kernels.programs import Image, PackedLayer
from pipeline.layers import Shape
from pipeline.layers.convolution import conv_params, weight_shape
from pipeline.layers.int8 import QuantizedLayer
from pipeline.layers.pooling import pool_geometry
from pipeline.runtime.compiled import Action, CompiledNet
from pipeline.runtime.identity import Same
from pipeline.runtime.nodes import Node, make_nodes
from pipeline.runtime.packing import Operands, PackedWeights
from pipeline.runtime.schedule import Schedule

__all__ = ["compile_net"]

#: How a value is needed: "float", "array", or as the integers of these parameters.
Form = str | QuantParams

Pair = tuple[int, int]


def compile_net(
    net: Net,
    plan: Schedule,
    shapes: Mapping[Value, Shape],
    numbers: Mapping[str, QuantizedLayer],
    *,
    watched: Collection[Value] = (),
    counting: bool = False,
    plain: Collection[int] = (),
    packed: PackedWeights,
) -> CompiledNet:
    """Compile a net.

    Parameters
    ----------
    net : Net
    plan : Schedule
        What to run and to return.
    shapes : mapping of Value to shape
        Of every value.
    numbers : mapping of layer name to QuantizedLayer
        Layers that run on integers.
    watched : collection of Value
        Values that an observer will ask for.
    counting : bool
        Whether the steps count watched values in histograms, where they can.
    plain : collection of int
        Positions of layers that must run as they are, for their shapes depend on data.
    packed : PackedWeights
        Kept from one shape to the next.
    """
    keep = {*plan.results.values(), *watched}
    nodes, same = make_nodes(net, plan.layers, shapes, keep, plain, numbers)
    compiler = _Compiler(net, nodes, shapes, numbers, packed, counting)
    results = {name: same.get(v, v) for name, v in plan.results.items()}
    seen = {v: same.get(v, v) for v in watched}
    return compiler.compile(results, seen)


class _Compiler:
    """Holds what grows while a net is compiled."""

    def __init__(
        self,
        net: Net,
        nodes: Sequence[Node],
        shapes: Mapping[Value, Shape],
        numbers: Mapping[str, QuantizedLayer],
        packed: PackedWeights,
        counting: bool,
    ) -> None:
        engine = packed.engine
        self.engine = engine
        self.counting = counting
        self.net, self.shapes, self.numbers, self.packed = net, shapes, numbers, packed
        self.parents: dict[Value, tuple[Value, int]] = {}
        self.nodes = [self._checked(node) for node in nodes]
        self.made_by = {v: node for node in self.nodes for v in node.writes}
        self.writer = {v: i for i, link in enumerate(net.links) for v in link.writes}
        self.by_steps = {v for v, node in self.made_by.items() if node.kind != "layer"}
        self.needs: dict[Value, set[Form]] = {}
        self.borders: dict[tuple[Value, Form], Pair] = {}
        self.builder = self.engine.Builder()
        self.images: dict[tuple[Value, Form], Image] = {}
        self.actions: list[Action] = []
        self.counted: list[tuple[int, Value]] = []
        self.begun = 0
        self.owners: list[str] = []

    def compile(self, results: Mapping[str, Value], seen: Mapping[Value, Value]) -> CompiledNet:
        """Add everything and return the compiled net."""
        self.watched: dict[Value, list[Value]] = {}
        for value, real in seen.items():
            self.watched.setdefault(real, []).append(value)
            self._need(real, "float" if real in self.by_steps else "array")
        for value in results.values():
            self._need(value, "array")
        for node in reversed(self.nodes):
            self._needs_of(node)
        inputs = [v for v in self.needs if v not in self.made_by]
        for value in inputs:
            self._arrived(value)
            self._owned_by(f"input '{value.blob}'")
        for node in self.nodes:
            self._add(node)
            self._owned_by(self._named(node))
        self._cut()
        return CompiledNet(
            self.engine,
            self.builder.program(),
            tuple(self.owners),
            tuple(self.actions),
            tuple(inputs),
            dict(results),
            tuple(self.counted),
        )

    # what is needed

    def _checked(self, node: Node) -> Node:
        """Place a Concat's bottoms within its top; run it as a layer if one has a place already."""
        if node.kind != "concat":
            return node
        if any(v in self.parents for v in node.reads):
            return Node("layer", node.position, node.reads, node.writes)
        first = 0
        for v in node.reads:
            self.parents[v] = node.writes[0], first
            first += self.shapes[v][1]
        return node

    def _need(self, value: Value, form: Form, border: Pair = (0, 0)) -> None:
        self.needs.setdefault(value, set()).add(form)
        key = self._root(value), form
        old = self.borders.get(key, (0, 0))
        self.borders[key] = max(old[0], border[0]), max(old[1], border[1])

    def _root(self, value: Value) -> Value:
        while value in self.parents:
            value = self.parents[value][0]
        return value

    def _image_forms(self, value: Value) -> set[Form]:
        """Return the forms in which a value made by steps is needed as an image."""
        forms = self.needs.get(value, set())
        more_than_one = sum(isinstance(f, QuantParams) for f in forms) > 1
        wants_float = "array" in forms or more_than_one or not forms
        mapped = value in self.made_by and self.made_by[value].kind == "map"
        return (forms - {"array"}) | ({"float"} if wants_float or mapped else set())

    def _needs_of(self, node: Node) -> None:
        """Add the forms in which a node needs the values that it reads."""
        if node.kind == "layer":
            for v in node.reads:
                self._need(v, "array")
            return
        if node.other is not None:
            self._need(node.other, "float")
        forms = self._image_forms(node.writes[0])
        numbers = self._numbers(node)
        for v in node.reads:
            if node.kind == "concat" or (node.kind == "max" and "float" not in forms):
                for form in forms:
                    self._need(v, form)
            else:
                self._need(v, numbers.data if numbers else "float", self._border(node))

    def _numbers(self, node: Node) -> QuantizedLayer | None:
        return self.numbers.get(self.net.layers[node.position].name)

    def _border(self, node: Node) -> Pair:
        size = self._image_shape(node.reads[0])[2:]
        if node.kind in ("conv", "deconv"):
            rule = self.engine.conv_border if node.kind == "conv" else self.engine.deconv_border
            return rule(self._geometry(node), size)
        return self.engine.pool_border(self._pool(node), size) if node.kind == "average" else (0, 0)

    # images and actions

    def _image_shape(self, value: Value) -> tuple[int, int, int, int]:
        n, c, h, w = (*self.shapes[value], 1, 1)[:4]
        return n, c, h, w

    def _image(self, value: Value, form: Form) -> Image:
        """Return where a value lies, having made room for it."""
        key = value, form
        if key not in self.images:
            if value in self.parents:
                whole, first = self.parents[value]
                image = self._image(whole, form).part(first, self.shapes[value][1])
            else:
                kernel = self.engine.choose("float" if form == "float" else "int8")
                offset = form.offset if isinstance(form, QuantParams) else 0
                border = self.borders.get((value, form), (0, 0))
                image = self.builder.image(kernel, self._image_shape(value), border, offset)
                self.builder.fill(image)
            self.images[key] = image
        return self.images[key]

    def _cut(self) -> None:
        """Run the steps added since the last cut before whatever comes next."""
        end = self.builder.now()
        if end > self.begun:
            self.actions.append(Action("run", begin=self.begun, end=end))
            self.begun = end

    def _named(self, node: Node) -> str:
        """Return a node's layer as an error names it, with the last that was taken in."""
        end = self.writer[node.writes[-1]] if node.writes else node.position
        first, last = (self.net.layers[i].name for i in (node.position, end))
        return f"layer '{first}'" + (f", with those up to '{last}'," if last != first else "")

    def _owned_by(self, name: str) -> None:
        """Record `name` as owner of the steps just added; errors about NaN quote it."""
        self.owners += [name] * (self.builder.now() - len(self.owners))

    def _outside(self, action: Action) -> None:
        if action.image is not None:
            self._cut()
            self.builder.touch(action.image)
        self.actions.append(action)

    def _arrived(self, value: Value) -> None:
        """Add the needed forms of a value that is an array."""
        forms = self.needs.get(value, set())
        for watched in self.watched.get(value, ()):
            self.actions.append(Action("watch", value=value, watched=watched))
        if forms - {"array"}:
            image = self._image(value, "float")
            self._outside(Action("enter", value=value, image=image))
            self._quantize(value, {f for f in forms if isinstance(f, QuantParams)})

    def _quantize(self, value: Value, forms: Collection[QuantParams]) -> None:
        """Add integers of a value whose float32 image is there."""
        for form in sorted(forms, key=repr):
            stage = kernels.float_stage(self.shapes[value][1], params=form)
            out = self._image(value, form)
            writes = self.engine.Writes(stage, integers=out)
            self.builder.apply(self._image(value, "float"), writes)

    def _add_missing_forms(self, value: Value, done: Collection[Form]) -> None:
        """Add what is needed of a value beside the forms `done`, which its steps have written."""
        forms = self.needs.get(value, set())
        self._quantize(value, {f for f in forms if isinstance(f, QuantParams)} - {*done})
        for watched in self.watched.get(value, ()):
            image = self._image(value, "float")
            step = self.builder.count(image) if self.counting else None
            if step is None:
                self._outside(Action("watch", value=value, image=image, watched=watched))
            else:
                self.counted.append((step, watched))
        if "array" in forms:
            image, shape = self._image(value, "float"), self.shapes[value]
            self._outside(Action("leave", value=value, image=image, shape=shape))

    # nodes

    def _add(self, node: Node) -> None:
        if node.kind == "layer":
            self._cut()
            self.actions.append(
                Action("layer", position=node.position, reads=node.reads, writes=node.writes)
            )
            for v in node.writes:
                self._arrived(v)
            return
        value = node.writes[0]
        forms = self._image_forms(value)
        if node.kind == "concat":
            for form in forms:
                self._image(value, form)
            done = forms
        elif node.kind == "map":
            source, out = self._image(node.reads[0], "float"), self._image(value, "float")
            self._cut()
            self.builder.touch(source, out)
            self.actions.append(Action("map", position=node.position, image=source, out=out))
            done = {"float"}
        elif node.kind == "max":
            done = {"float"} if "float" in forms else forms
            for form in done:
                source, out = self._image(node.reads[0], form), self._image(value, form)
                self.engine.add_largest(self.builder, source, self._pool(node), out)
        else:
            done = self._add_sums(node, forms)
        self._add_missing_forms(value, done)

    def _add_sums(self, node: Node, forms: set[Form]) -> set[Form]:
        """Add a node with an output stage; return the forms that it writes."""
        value, numbers = node.writes[0], self._numbers(node)
        params = min((f for f in forms if isinstance(f, QuantParams)), key=repr, default=None)
        writes = self.engine.Writes(
            self._stage(node, numbers, params),
            floats=self._image(value, "float") if "float" in forms else None,
            integers=None if params is None else self._image(value, params),
            other=None if node.other is None else self._image(node.other, "float"),
            slope=node.slope,
        )
        source = self._image(node.reads[0], numbers.data if numbers else "float")
        if node.kind == "apply":
            self.builder.apply(source, writes)
        elif node.kind == "average":
            self.engine.add_average(self.builder, source, self._pool(node), writes)
        else:
            self._weights(node, numbers, source).add(self.builder, source, writes)
        return {f for f in ("float", params) if f in forms}

    def _stage(
        self, node: Node, numbers: QuantizedLayer | None, params: QuantParams | None
    ) -> CheckedStage:
        channels = self.shapes[node.writes[0]][1]
        clamp = node.clamp or (-inf, inf)
        if numbers is None:
            return kernels.float_stage(channels, clamp, params)
        shift = None if node.kind == "average" else numbers.shift
        output = OutputStage(numbers.deq_scale, shift=shift, clamp=clamp, params=params)
        return kernels.check_output(output, channels, numbers.data.offset)

    def _pool(self, node: Node) -> kernels.PoolGeometry:
        layer, link = self.net.layers[node.position], self.net.links[node.position]
        return pool_geometry(layer, self.shapes[node.reads[0]], self.shapes[link.writes[0]])

    def _geometry(self, node: Node) -> ConvGeometry:
        """Return the windows of a convolution; an inner product's cover the whole image."""
        bottom = self._image_shape(node.reads[0])
        if node.kind == "inner":
            return ConvGeometry(bottom[2:], (1, 1), (0, 0), (1, 1), 1, (1, 1))
        p = conv_params(self.net.layers[node.position], bottom)
        top = self.shapes[node.writes[0]]
        kernel, stride, pad, dilation = (
            (v[0], v[1]) for v in (p.kernel, p.stride, p.pad, p.dilation)
        )
        return ConvGeometry(kernel, stride, pad, dilation, p.group, (top[2], top[3]))

    def _weights(self, node: Node, numbers: QuantizedLayer | None, source: Image) -> PackedLayer:
        """Return a layer's packed weights."""
        layer, g = self.net.layers[node.position], self._geometry(node)
        channels = self._image_shape(node.reads[0])[1]
        if node.kind == "inner":
            shape: Shape = (layer.param.inner_product_param.num_output, channels, *g.kernel)
        else:
            p = conv_params(layer, self.shapes[node.reads[0]])
            shape = weight_shape(p, channels, node.kind == "deconv")
        if numbers is None:
            w, bias = layer.blobs[0], layer.blobs[1] if len(layer.blobs) > 1 else None
        else:
            assert numbers.weights is not None
            w, bias = numbers.weights, numbers.bias
        return self.packed.of(
            Operands(
                self.engine.choose("float" if numbers is None else "int8"),
                Same(w),
                None if bias is None else Same(bias),
                shape,
                node.kind == "deconv",
                g,
                0 if numbers is None else numbers.data.offset,
                source.pixel == source.channels,
                Operands.of_affine(node.affine),
            )
        )
