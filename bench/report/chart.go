package report

import (
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	_ "gonum.org/v1/plot/vg/vgsvg" // the format of Save

	"podd/bench/measure"
)

// Chart is a picture of one figure: boxes from quartile to quartile side by
// side, or lines through the medians where the works differ by a number.
type Chart struct {
	// File is its name without ".svg".
	File  string
	Title string
	// Figure is drawn upwards; Works are along the other axis, or those that
	// there are samples of; Contenders have a colour each, in this order.
	Figure     string
	Works      []string
	Contenders []string
	// X has a number for each work and makes the chart one of lines; XLabel
	// says what it is.
	X      []float64
	XLabel string
	// LogX and LogY make an axis logarithmic.
	LogX, LogY bool
}

// Draw writes a chart to DIR/FILE.svg. A chart of no samples is not written.
func (r *Report) Draw(dir string, c Chart) error {
	p := plot.New()
	p.Title.Text = c.Title
	figure := r.figure(c.Figure)
	p.Y.Label.Text = strings.TrimSpace(figure.Name + " " + bracketed(figure.Unit))
	p.X.Label.Text = c.XLabel
	p.Legend.Top = true
	p.Legend.Left = true
	p.Title.TextStyle.Font.Size = vg.Points(13)
	p.Title.Padding = vg.Points(8)
	p.Add(horizontal())
	draw := r.boxes
	if c.X != nil {
		draw = r.lines
	}
	drawn, err := draw(p, c)
	if err != nil {
		return fmt.Errorf("drawing %s: %w", c.File, err)
	}
	if drawn == 0 {
		return nil
	}
	if c.LogY && p.Y.Min > 0 {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, ticks{}
		p.Y.Min = math.Pow(10, math.Floor(math.Log10(p.Y.Min)))
		p.Y.Max *= 2 // for the legend
	} else {
		p.Y.Min = min(0, p.Y.Min)
		p.Y.Max *= 1.15
	}
	if c.LogX && p.X.Min > 0 {
		// Not even a single point may make it an empty range.
		p.X.Min, p.X.Max = p.X.Min/1.5, p.X.Max*1.5
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, ticks{}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("drawing %s: %w", c.File, err)
	}
	width := 14 + vg.Length(len(c.Works)*len(c.Contenders))*0.7
	if err := p.Save(min(width, 30)*vg.Centimeter, 10*vg.Centimeter, filepath.Join(dir, c.File+".svg")); err != nil {
		return fmt.Errorf("drawing %s: %w", c.File, err)
	}
	return nil
}

// boxes draws a group of boxes for each work and returns how many there are.
func (r *Report) boxes(p *plot.Plot, c Chart) (int, error) {
	var works []string
	for _, w := range c.Works {
		for _, contender := range c.Contenders {
			if r.series(measure.Key{Work: w, Contender: contender, Figure: c.Figure}) != nil {
				works = append(works, w)
				break
			}
		}
	}
	const width = 0.5 // of a centimetre, a box
	drawn := 0
	for i, contender := range c.Contenders {
		offset := (float64(i) - float64(len(c.Contenders)-1)/2) * 0.8 / float64(len(c.Contenders))
		found := false
		for j, w := range works {
			s := r.series(measure.Key{Work: w, Contender: contender, Figure: c.Figure})
			if s == nil {
				continue
			}
			b, err := plotter.NewBoxPlot(width*vg.Centimeter, float64(j)+offset, plotter.Values(s.Samples))
			if err != nil {
				return 0, err
			}
			b.FillColor = plotutil.SoftColors[i%len(plotutil.SoftColors)]
			b.MedianStyle.Width = vg.Points(1.5)
			p.Add(b)
			found = true
			drawn++
		}
		if found {
			p.Legend.Add(contender, swatch{plotutil.SoftColors[i%len(plotutil.SoftColors)]})
		}
	}
	if drawn > 0 {
		p.NominalX(works...)
		p.X.Min, p.X.Max = -0.6, float64(len(works))-0.4
	}
	return drawn, nil
}

// lines draws a line for each contender and returns how many points there are.
func (r *Report) lines(p *plot.Plot, c Chart) (int, error) {
	drawn := 0
	for i, contender := range c.Contenders {
		var points medians
		for j, w := range c.Works {
			if s := r.series(measure.Key{Work: w, Contender: contender, Figure: c.Figure}); s != nil {
				points.XYs = append(points.XYs, plotter.XY{X: c.X[j], Y: s.Summary.Median})
				points.YErrors = append(points.YErrors, struct{ Low, High float64 }{
					s.Summary.Median - s.Summary.Q1, s.Summary.Q3 - s.Summary.Median,
				})
			}
		}
		if len(points.XYs) == 0 {
			continue
		}
		line, dots, err := plotter.NewLinePoints(points.XYs)
		if err != nil {
			return 0, err
		}
		line.Color, dots.Color, dots.Shape = plotutil.Color(i), plotutil.Color(i), plotutil.Shape(i)
		bars, err := plotter.NewYErrorBars(points)
		if err != nil {
			return 0, err
		}
		bars.Color = plotutil.Color(i)
		p.Add(line, dots, bars)
		p.Legend.Add(contender, line, dots)
		drawn += len(points.XYs)
	}
	return drawn, nil
}

// medians are points with the distance to their quartiles.
type medians struct {
	plotter.XYs
	plotter.YErrors
}

func horizontal() *plotter.Grid {
	g := plotter.NewGrid()
	g.Vertical.Color = nil
	g.Horizontal.Color = color.Gray{0xd8}
	return g
}

// ticks labels powers of ten as plain numbers.
type ticks struct{}

func (ticks) Ticks(low, high float64) []plot.Tick {
	all := plot.LogTicks{Prec: -1}.Ticks(low, high)
	for i, t := range all {
		if t.Label != "" {
			all[i].Label = fmt.Sprintf("%g", t.Value)
		}
	}
	return all
}

// swatch is a filled rectangle in a legend.
type swatch struct{ color color.Color }

func (s swatch) Thumbnail(c *draw.Canvas) {
	c.FillPolygon(s.color, []vg.Point{c.Min, {X: c.Min.X, Y: c.Max.Y}, c.Max, {X: c.Max.X, Y: c.Min.Y}})
}

func bracketed(unit string) string {
	if unit == "" {
		return ""
	}
	return "[" + unit + "]"
}
